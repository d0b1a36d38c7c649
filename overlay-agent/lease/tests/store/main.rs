//! What every store has to do, from one source over each of them: etcd, which each test starts for itself on loopback; the
//! peers file, which refuses by name whatever would write; and memory.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod etcd;
mod members;
mod memory;
mod operators;
mod peers;
mod reading;
mod site;
mod writing;

/// Every test once for each of these stores.
macro_rules! over {
    ([$($store:ident $site:path),+] $tests:tt) => {
        $(mod $store { over!(@ $site; $tests); })+
    };
    (@ $site:path; { $($part:ident: $($test:ident),+;)+ }) => {
        $($(
            #[tokio::test]
            async fn $test() {
                Box::pin(crate::$part::$test::<$site>()).await;
            }
        )+)+
    };
}

over! {
    [etcd_is_a_store crate::etcd::EtcdSite, memory_is_a_store crate::memory::MemorySite,
     the_peers_file_is_a_store crate::peers::PeersSite] {
        reading:
            a_network_without_leases_has_a_config,
            leases_are_listed_in_order_and_know_their_revisions,
            a_watch_tells_of_every_change_in_order,
            a_watch_tells_what_was_missed,
            a_watch_tells_of_the_config_whoever_wants_that,
            the_past_of_a_key_is_what_it_was;
        writing:
            a_subnet_is_created_once_and_never_over_another,
            a_subnet_is_not_created_under_another_config,
            what_has_changed_is_neither_replaced_nor_deleted,
            a_config_is_written_where_nothing_has_changed,
            a_key_goes_with_what_it_hangs_on_unless_that_is_kept,
            what_no_key_hangs_on_is_given_back;
        members:
            a_config_is_waited_for_and_its_changes_are_told,
            leases_are_followed;
        operators:
            a_subnet_is_reserved_and_released,
            a_config_that_does_harm_is_not_written;
    }
}

over! {
    [hosts_write_to_etcd crate::etcd::EtcdSite, hosts_write_to_memory crate::memory::MemorySite] {
        reading:
            what_is_forgotten_is_not_watched;
        members:
            a_host_takes_a_subnet_and_keeps_it,
            hosts_at_once_take_different_subnets;
    }
}
