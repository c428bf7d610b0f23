//! Settings: configuration file and kernel command line, merged and validated.
