/// Defines a type that lives in a BPF map: fixed layout, no padding (proved by `IntoBytes`), and a
/// size that is part of the ABI.
macro_rules! map_type {
    ($(#[$meta:meta])* pub struct $name:ident[$size:literal] { $($body:tt)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(
            Clone,
            Copy,
            Debug,
            Default,
            PartialEq,
            Eq,
            Hash,
            zerocopy::FromBytes,
            zerocopy::IntoBytes,
            zerocopy::Immutable,
            zerocopy::KnownLayout,
        )]
        pub struct $name { $($body)* }

        const _: () = assert!(size_of::<$name>() == $size, "the size is part of the ABI");

        #[cfg(test)]
        impl $name {
            /// What it is made of, for the record of the ABI.
            pub(crate) const LAYOUT: &'static str =
                stringify!($name[$size] { $($body)* });
        }

        // SAFETY: `FromBytes` proves that every byte pattern is a value.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    };
}

pub(crate) use map_type;
