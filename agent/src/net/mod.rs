//! Network: links, addresses, routes and name servers, configured in the initrd and removed at the hand-over.
