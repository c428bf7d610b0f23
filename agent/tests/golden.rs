//! What `freshroot plan` and `freshroot status` print, case by case.
//!
//! A case is a folder in `golden/`, named as a sentence: `root/` is what the machine looks like, `cache.json` what its cache holds, `expected` and
//! `expected.json` what is printed, or `expected-error` the exit code and the message. `UPDATE_GOLDEN=1` writes the expected files anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/golden.rs"]
mod support;

use support::{check, folders};

/// One test for each case, named as its folder is.
macro_rules! cases {
    ($($command:literal: $($case:ident)*;)*) => {
        $($(
            #[test]
            fn $case() {
                check($command, &stringify!($case).replace('_', "-"));
            }
        )*)*

        #[test]
        fn every_folder_is_a_case() {
            let mut listed = vec![$($(stringify!($case).replace('_', "-")),*),*];
            listed.sort();
            assert_eq!(listed, folders());
        }
    };
}

cases! {
    "plan":
        nothing_is_configured_and_nothing_can_boot
        a_channel_without_a_cache_is_asked_for
        a_channel_is_asked_for_and_the_cached_generation_boots_without_an_answer
        a_link_with_limits_is_told_with_its_figures
        a_mirror_is_asked_after_the_first_server
        cache_first_boots_the_cache_and_asks_nobody
        offline_falls_back_to_another_cached_system
        offline_without_a_cache_gives_up
        require_fresh_gives_up_without_an_answer
        a_selected_system_that_is_cached_needs_no_request
        a_selected_system_that_is_incomplete_is_fetched_without_asking
        a_pinned_manifest_boots_without_a_key
        a_generation_of_a_foreign_key_is_left_alone
        a_generation_for_another_kernel_does_not_boot
        a_generation_without_tries_left_gives_way_to_a_blessed_one
        a_corrupt_state_counts_as_absent_and_is_said
        a_guarded_setting_is_refused_on_the_command_line
        an_answer_of_unknown_age_is_asked_for
        an_unknown_word_of_ours_is_warned_about
        persistent_entries_are_mounted_in_order
        a_bad_entry_is_refused_by_its_name
        a_cache_with_other_options_than_the_entry_on_its_disk_is_refused
        verify_size_only_looks_at_the_size
        what_a_reset_withdrew_is_the_last_choice
        without_a_cache_disk_the_image_lives_in_ram
        declared_disks_are_prepared_only_if_blank;
    "plan --mode systemd":
        under_systemd_its_entries_are_looked_for_and_binds_are_made
        under_systemd_a_system_in_init_is_the_only_one_that_boots;
    "status":
        a_report_shows_how_the_system_was_booted
        a_report_shows_why_a_boot_failed
        an_absent_report_is_named
        a_report_of_a_newer_version_is_refused;
}
