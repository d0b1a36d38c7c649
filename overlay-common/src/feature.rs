//! What the datapath asks of a kernel, beyond what every kernel has that is still maintained.

macro_rules! features {
    ($($need:ident { $($name:ident = $text:literal, $since:literal, $gives:literal, $without:literal;)+ })+) => {
        /// Something that kernels have from some version on. Whether this one has it is found out by trying:
        /// distributions take things out of kernels, and put them into older ones.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Feature {
            $($(#[doc = $gives] $name,)+)+
        }

        impl Feature {
            /// Every feature, from the oldest to the newest.
            pub const ALL: &'static [Self] = &[$($(Self::$name,)+)+];

            /// Its name in `status` and in the documentation.
            pub const fn name(self) -> &'static str {
                match self { $($(Self::$name => $text,)+)+ }
            }

            /// The first Linux that has it, as `MAJOR.MINOR`.
            pub const fn since(self) -> &'static str {
                match self { $($(Self::$name => $since,)+)+ }
            }

            /// Whether we can do without.
            pub const fn need(self) -> Need {
                match self { $($(Self::$name => Need::$need,)+)+ }
            }

            /// What it is for, in one sentence.
            pub const fn gives(self) -> &'static str {
                match self { $($(Self::$name => $gives,)+)+ }
            }

            /// What is done where it is missing, in one sentence.
            pub const fn without(self) -> &'static str {
                match self { $($(Self::$name => $without,)+)+ }
            }
        }
    };
}

/// Whether the datapath can do without a [`Feature`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Need {
    /// The agent does not start where it is missing.
    Required,
    /// There is another way.
    Optional,
}

features! {
    Required {
        LruHash = "lru_hash", "4.10",
            "Remembers flows that left through the stack and forgets the oldest.",
            "The agent does not start.";
        FibLookup = "fib_lookup", "4.18",
            "Tells what the kernel would forward to the containers' bridge.",
            "The agent does not start.";
    }
    Optional {
        Btf = "btf", "4.18",
            "`bpftool map dump` prints fields, addresses and MACs.",
            "Maps are printed as bytes.";
    }
    Required {
        CsumLevel = "csum_level", "5.8",
            "Takes back what the NIC said about the outer checksum when the outer headers go.",
            "The agent does not start.";
        RedirectNeigh = "redirect_neigh", "5.10",
            "Sends out of the uplink with MACs from the kernel's neighbour table.",
            "The agent does not start.";
        RedirectPeer = "redirect_peer", "5.10",
            "Delivers into a container without a second pass through the host's receive queue.",
            "The agent does not start.";
        EncapL2Eth = "encap_l2_eth", "5.13",
            "Encapsulates aggregates whole; what splits them later finds the inner Ethernet header.",
            "The agent does not start.";
    }
    Optional {
        Tcx = "tcx", "6.6",
            "Programs are held by links, which nobody removes by mistake.",
            "Programs are direct-action filters of a clsact qdisc.";
        DecapL4Udp = "decap_l4_udp", "7.3",
            "Could decapsulate aggregates natively for everybody; not made use of yet.",
            "Aggregates that are not for a container's own TCP socket are taken apart by the tunnel device.";
    }
}

impl Feature {
    /// The feature of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|feature| feature.name() == name)
    }

    /// Whether a Linux of this version has it, as far as versions tell.
    pub fn expected_in(self, major: u32, minor: u32) -> bool {
        parse_version(self.since()).is_some_and(|since| (major, minor) >= since)
    }
}

/// Major and minor number of a kernel's release: `6.1.0-50-cloud-amd64` is 6.1.
pub fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        let names: HashSet<_> = Feature::ALL.iter().map(|feature| feature.name()).collect();
        assert_eq!(names.len(), Feature::ALL.len());
        for &feature in Feature::ALL {
            assert_eq!(Feature::from_name(feature.name()), Some(feature));
        }
        assert_eq!(Feature::from_name("no_such_feature"), None);
    }

    #[test]
    fn features_are_listed_from_the_oldest_to_the_newest() {
        let versions: Vec<_> =
            Feature::ALL.iter().map(|feature| parse_version(feature.since()).unwrap()).collect();
        assert!(versions.is_sorted(), "{versions:?}");
    }

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(parse_version("6.1.0-50-cloud-amd64"), Some((6, 1)));
        assert_eq!(parse_version("6.12.117+deb13-cloud-amd64"), Some((6, 12)));
        assert_eq!(parse_version("7.2-rc1"), Some((7, 2)));
        assert_eq!(parse_version("linux"), None);
        assert!(!Feature::Tcx.expected_in(6, 1));
        assert!(Feature::Tcx.expected_in(6, 6));
        assert!(Feature::Tcx.expected_in(6, 12));
        assert!(Feature::Tcx.expected_in(7, 0));
    }
}
