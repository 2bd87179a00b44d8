//! What certificates may be used for, in the words of `certificates.k8s.io`.

/// The usages that a certificate's key may be put to, and the bits that say so.
const KEY: [(&str, u8); 10] = [
    ("signing", 0),
    ("digital signature", 0),
    ("content commitment", 1),
    ("key encipherment", 2),
    ("data encipherment", 3),
    ("key agreement", 4),
    ("cert sign", 5),
    ("crl sign", 6),
    ("encipher only", 7),
    ("decipher only", 8),
];

/// The purposes of a certificate, and their identifiers.
const EXTENDED: [(&str, &[u64]); 13] = [
    ("any", &[2, 5, 29, 37, 0]),
    ("server auth", &[1, 3, 6, 1, 5, 5, 7, 3, 1]),
    ("client auth", &[1, 3, 6, 1, 5, 5, 7, 3, 2]),
    ("code signing", &[1, 3, 6, 1, 5, 5, 7, 3, 3]),
    ("email protection", &[1, 3, 6, 1, 5, 5, 7, 3, 4]),
    ("s/mime", &[1, 3, 6, 1, 5, 5, 7, 3, 4]),
    ("ipsec end system", &[1, 3, 6, 1, 5, 5, 7, 3, 5]),
    ("ipsec tunnel", &[1, 3, 6, 1, 5, 5, 7, 3, 6]),
    ("ipsec user", &[1, 3, 6, 1, 5, 5, 7, 3, 7]),
    ("timestamping", &[1, 3, 6, 1, 5, 5, 7, 3, 8]),
    ("ocsp signing", &[1, 3, 6, 1, 5, 5, 7, 3, 9]),
    ("microsoft sgc", &[1, 3, 6, 1, 4, 1, 311, 10, 3, 3]),
    ("netscape sgc", &[2, 16, 840, 1, 113730, 4, 1]),
];

/// All usages that a request may name, sorted as Kubernetes lists them.
pub(crate) fn all() -> Vec<&'static str> {
    let mut all: Vec<&str> =
        KEY.iter().map(|(name, _)| *name).chain(EXTENDED.map(|(name, _)| name)).collect();
    all.sort_unstable();
    all
}

/// The bits of the key usage extension.
pub(super) fn key_bits(usages: &[String]) -> Vec<u8> {
    let named = KEY.iter().filter(|(name, _)| usages.iter().any(|usage| usage == name));
    let mut bits: Vec<u8> = named.map(|(_, bit)| *bit).collect();
    bits.dedup();
    bits
}

/// The identifiers of the extended key usage extension.
pub(super) fn purposes(usages: &[String]) -> Vec<&'static [u64]> {
    let named = EXTENDED.iter().filter(|(name, _)| usages.iter().any(|usage| usage == name));
    let mut purposes: Vec<&[u64]> = named.map(|(_, id)| *id).collect();
    purposes.dedup();
    purposes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usages_are_known_once() {
        assert_eq!(all().len(), KEY.len() + EXTENDED.len());
        let usages = ["digital signature", "signing", "client auth"].map(str::to_owned);
        assert_eq!(key_bits(&usages), [0]);
        assert_eq!(purposes(&usages), [&[1, 3, 6, 1, 5, 5, 7, 3, 2]]);
    }
}
