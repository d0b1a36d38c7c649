//! From filters to links and back: what an upgrade of the kernel does, without the reboot in between.

use overlay_lab::{Host, UPLINK};

use crate::{
    kernels::{by_filters, filters},
    overlay::{Overlay, peers_file},
    survival::nothing_is_lost,
};

fn links(host: &Host) -> usize {
    std::fs::read_dir(host.pins().join("links")).unwrap().count()
}

#[test]
fn programs_move_from_filters_to_links_and_back_without_a_gap() {
    let mut overlay = Overlay::by_file(by_filters);
    let by_links = peers_file(&overlay.lab);
    let by_filters = overlay.options.clone();
    for (options, expected) in [(by_links, "tcx"), (by_filters, "clsact")] {
        nothing_is_lost(&mut overlay, expected, |overlay| {
            overlay.agents[0].kill().unwrap();
            overlay.agents[0] = overlay.lab.host(0).start_agent(&options).unwrap();
        });
        overlay.settle();
        let host = overlay.lab.host(0);
        assert_eq!(overlay.agents[0].status().unwrap()["attached_by"], expected);
        let on_uplink = filters(host, UPLINK, "ingress");
        if expected == "tcx" {
            assert_eq!((on_uplink.len(), links(host)), (0, 7), "{on_uplink:?}");
        } else {
            assert_eq!((on_uplink.len(), links(host)), (1, 0), "{on_uplink:?}");
        }
    }
}
