//! The ciphers of Kubernetes' encryption at rest, and the keys of one rule in their order.

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use aes::{Aes128, Aes192, Aes256};
use crypto_secretbox::aead::Aead;
use crypto_secretbox::{KeyInit, XSalsa20Poly1305};
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use super::MARK;

/// The initial vector of AES-CBC: one block.
const CBC_IV: usize = 16;
/// The nonce of a secret box.
const BOX_NONCE: usize = 24;

/// Why a value does not decipher. It tells nothing of the value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecipherable {
    /// The value names a provider or key that the configuration does not, or is in plain text where the
    /// configuration has no `identity`.
    #[error("no matching prefix found")]
    NoKey,
    /// The key of that name is another one, or the value was changed or moved.
    #[error(
        "provider {provider:?} with key {key:?}: the value was not enciphered with this key, or was changed since"
    )]
    Forged {
        /// The provider.
        provider: &'static str,
        /// The key's name.
        key: String,
    },
}

/// The system has no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("a value cannot be enciphered: the system gives no random numbers")]
pub struct NoRandomness;

/// A value in plain text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Deciphered {
    pub(super) value: Vec<u8>,
    /// Enciphered (or left plain) by another key than the first.
    pub(super) stale: bool,
}

/// The keys of one rule: the first enciphers, all decipher.
pub struct Keyring(Vec<Key>);

/// A named key of one provider, or the wish for plain text.
pub(super) struct Key {
    name: String,
    cipher: Cipher,
}

enum Cipher {
    Identity,
    AesGcm(Box<LessSafeKey>),
    AesCbc(Vec<u8>),
    Secretbox(Box<XSalsa20Poly1305>),
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| (key.cipher.provider(), &key.name))).finish()
    }
}

impl Key {
    pub(super) fn identity() -> Self {
        Self { name: String::new(), cipher: Cipher::Identity }
    }

    /// A key of the provider `aesgcm`: 16 or 32 bytes.
    pub(super) fn aesgcm(name: &str, secret: &[u8]) -> Option<Self> {
        let algorithm = match secret.len() {
            16 => &AES_128_GCM,
            32 => &AES_256_GCM,
            _ => return None,
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, secret).ok()?);
        Some(Self { name: name.to_owned(), cipher: Cipher::AesGcm(Box::new(key)) })
    }

    /// A key of the provider `aescbc`: 16, 24 or 32 bytes.
    pub(super) fn aescbc(name: &str, secret: &[u8]) -> Option<Self> {
        matches!(secret.len(), 16 | 24 | 32)
            .then(|| Self { name: name.to_owned(), cipher: Cipher::AesCbc(secret.to_vec()) })
    }

    /// A key of the provider `secretbox`: 32 bytes.
    pub(super) fn secretbox(name: &str, secret: &[u8]) -> Option<Self> {
        let cipher = XSalsa20Poly1305::new_from_slice(secret).ok()?;
        Some(Self { name: name.to_owned(), cipher: Cipher::Secretbox(Box::new(cipher)) })
    }

    fn head(&self) -> Vec<u8> {
        format!("k8s:enc:{}:v1:{}:", self.cipher.provider(), self.name).into_bytes()
    }

    /// The value in plain text; nothing if it is not this key's.
    fn open(&self, key: &str, value: &[u8]) -> Option<Result<Vec<u8>, Undecipherable>> {
        if let Cipher::Identity = self.cipher {
            return (!value.starts_with(MARK)).then(|| Ok(value.to_vec()));
        }
        let sealed = value.strip_prefix(&*self.head())?;
        let forged = || Undecipherable::Forged { provider: self.cipher.provider(), key: self.name.clone() };
        Some(self.cipher.open(key, sealed).ok_or_else(forged))
    }
}

impl Cipher {
    fn provider(&self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::AesGcm(_) => "aesgcm",
            Self::AesCbc(_) => "aescbc",
            Self::Secretbox(_) => "secretbox",
        }
    }

    /// Appends the enciphered value to `out`.
    fn seal(&self, key: &str, value: &[u8], out: &mut Vec<u8>) -> Result<(), NoRandomness> {
        match self {
            Self::Identity => out.extend(value),
            Self::AesGcm(cipher) => {
                let nonce: [u8; NONCE_LEN] = random()?;
                let mut text = value.to_vec();
                cipher
                    .seal_in_place_append_tag(
                        Nonce::assume_unique_for_key(nonce),
                        Aad::from(key.as_bytes()),
                        &mut text,
                    )
                    .expect("values are far below the 64 GiB that one nonce is good for");
                out.extend(nonce);
                out.extend(text);
            }
            Self::AesCbc(secret) => {
                let iv: [u8; CBC_IV] = random()?;
                out.extend(iv);
                out.extend(cbc_seal(secret, &iv, value));
            }
            Self::Secretbox(cipher) => {
                let nonce: [u8; BOX_NONCE] = random()?;
                let sealed = cipher.encrypt((&nonce).into(), value);
                out.extend(nonce);
                out.extend(sealed.expect("sealing a value in memory does not fail"));
            }
        }
        Ok(())
    }

    fn open(&self, key: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Identity => Some(sealed.to_vec()),
            Self::AesGcm(cipher) => {
                let (nonce, text) = sealed.split_at_checked(NONCE_LEN)?;
                let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
                let mut text = text.to_vec();
                let length = cipher.open_in_place(nonce, Aad::from(key.as_bytes()), &mut text).ok()?.len();
                text.truncate(length);
                Some(text)
            }
            Self::AesCbc(secret) => {
                let (iv, text) = sealed.split_at_checked(CBC_IV)?;
                cbc_open(secret, iv, text)
            }
            Self::Secretbox(cipher) => {
                let (nonce, text) = sealed.split_at_checked(BOX_NONCE)?;
                let nonce: &[u8; BOX_NONCE] = nonce.try_into().ok()?;
                cipher.decrypt(nonce.into(), text).ok()
            }
        }
    }
}

const SIZES: &str = "keys are checked when they are read";

fn cbc_seal(secret: &[u8], iv: &[u8], value: &[u8]) -> Vec<u8> {
    match secret.len() {
        16 => cbc::Encryptor::<Aes128>::new_from_slices(secret, iv)
            .expect(SIZES)
            .encrypt_padded_vec::<Pkcs7>(value),
        24 => cbc::Encryptor::<Aes192>::new_from_slices(secret, iv)
            .expect(SIZES)
            .encrypt_padded_vec::<Pkcs7>(value),
        _ => cbc::Encryptor::<Aes256>::new_from_slices(secret, iv)
            .expect(SIZES)
            .encrypt_padded_vec::<Pkcs7>(value),
    }
}

fn cbc_open(secret: &[u8], iv: &[u8], text: &[u8]) -> Option<Vec<u8>> {
    match secret.len() {
        16 => {
            cbc::Decryptor::<Aes128>::new_from_slices(secret, iv).ok()?.decrypt_padded_vec::<Pkcs7>(text).ok()
        }
        24 => {
            cbc::Decryptor::<Aes192>::new_from_slices(secret, iv).ok()?.decrypt_padded_vec::<Pkcs7>(text).ok()
        }
        _ => {
            cbc::Decryptor::<Aes256>::new_from_slices(secret, iv).ok()?.decrypt_padded_vec::<Pkcs7>(text).ok()
        }
    }
}

fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}

impl Keyring {
    /// The keys in their order; there is at least one.
    pub(super) fn new(keys: Vec<Key>) -> Self {
        debug_assert!(!keys.is_empty(), "a rule names a provider");
        Self(keys)
    }

    /// Enciphers the value of a key in the store.
    pub(super) fn seal(&self, key: &str, value: &[u8]) -> Result<Vec<u8>, NoRandomness> {
        let Some(first) = self.0.first() else { return Ok(value.to_vec()) };
        let mut out = match first.cipher {
            Cipher::Identity => Vec::new(),
            _ => first.head(),
        };
        first.cipher.seal(key, value, &mut out)?;
        Ok(out)
    }

    /// Deciphers what was stored under a key.
    pub(super) fn open(&self, key: &str, value: &[u8]) -> Result<Deciphered, Undecipherable> {
        let mut last = Undecipherable::NoKey;
        for (position, candidate) in self.0.iter().enumerate() {
            match candidate.open(key, value) {
                Some(Ok(value)) => return Ok(Deciphered { value, stale: position > 0 }),
                // Two keys may share a name.
                Some(Err(forged)) => last = forged,
                None => {}
            }
        }
        Err(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "/registry/secrets/default/a";

    fn all(secret: u8) -> Vec<(&'static str, Key)> {
        vec![
            ("aesgcm", Key::aesgcm("one", &[secret; 32]).unwrap()),
            ("aesgcm", Key::aesgcm("small", &[secret; 16]).unwrap()),
            ("aescbc", Key::aescbc("one", &[secret; 32]).unwrap()),
            ("aescbc", Key::aescbc("middle", &[secret; 24]).unwrap()),
            ("aescbc", Key::aescbc("small", &[secret; 16]).unwrap()),
            ("secretbox", Key::secretbox("one", &[secret; 32]).unwrap()),
        ]
    }

    #[test]
    fn each_cipher_gives_back_what_it_took() {
        for (provider, key) in all(7) {
            let head = format!("k8s:enc:{provider}:v1:{}:", key.name);
            let ring = Keyring::new(vec![key]);
            for value in [&b""[..], b"x", &[9; 100]] {
                let sealed = ring.seal(KEY, value).unwrap();
                assert!(sealed.starts_with(head.as_bytes()), "{head}");
                assert_ne!(
                    sealed,
                    ring.seal(KEY, value).unwrap(),
                    "{head}: the same value twice looks alike"
                );
                let opened = ring.open(KEY, &sealed).unwrap();
                assert_eq!((&opened.value[..], opened.stale), (value, false));
            }
        }
    }

    #[test]
    fn another_key_of_the_same_name_opens_nothing() {
        for ((provider, mine), (_, theirs)) in all(7).into_iter().zip(all(8)) {
            let sealed = Keyring::new(vec![theirs]).seal(KEY, b"secret").unwrap();
            let opened = Keyring::new(vec![mine]).open(KEY, &sealed);
            // CBC has no tag: what comes out may be padded well by chance, but is not what went in.
            match opened {
                Err(Undecipherable::Forged { .. }) => {}
                Ok(opened) => assert!(provider == "aescbc" && opened.value != b"secret"),
                Err(other) => panic!("{provider}: {other}"),
            }
        }
    }

    #[test]
    fn a_changed_or_cut_or_moved_value_is_refused() {
        for (provider, key) in all(7).into_iter().filter(|(provider, _)| *provider != "aescbc") {
            let ring = Keyring::new(vec![key]);
            let sealed = ring.seal(KEY, b"secret").unwrap();
            let mut changed = sealed.clone();
            *changed.last_mut().unwrap() ^= 1;
            assert!(ring.open(KEY, &changed).is_err(), "{provider}");
            for length in 0..sealed.len() {
                assert!(ring.open(KEY, &sealed[..length]).is_err(), "{provider} cut to {length}");
            }
            let moved = ring.open("/registry/secrets/default/b", &sealed);
            assert_eq!(moved.is_err(), provider == "aesgcm");
        }
    }

    #[test]
    fn old_keys_and_plain_text_are_read_and_known_as_stale() {
        let old = Keyring::new(vec![Key::aescbc("old", &[1; 32]).unwrap()]);
        let ring = || vec![Key::aesgcm("new", &[2; 32]).unwrap(), Key::aescbc("old", &[1; 32]).unwrap()];
        let sealed = old.seal(KEY, b"secret").unwrap();
        let opened = Keyring::new(ring()).open(KEY, &sealed).unwrap();
        assert_eq!(opened, Deciphered { value: b"secret".to_vec(), stale: true });
        // Plain text only where the configuration says so.
        assert_eq!(Keyring::new(ring()).open(KEY, b"plain"), Err(Undecipherable::NoKey));
        let mut with_identity = ring();
        with_identity.push(Key::identity());
        let with_identity = Keyring::new(with_identity);
        assert!(with_identity.open(KEY, b"plain").unwrap().stale);
        let foreign = b"k8s:enc:kms:v2:x:y";
        assert_eq!(with_identity.open(KEY, foreign), Err(Undecipherable::NoKey));
    }

    #[test]
    fn keys_of_wrong_length_are_none() {
        assert!(Key::aesgcm("k", &[0; 24]).is_none());
        assert!(Key::aescbc("k", &[0; 31]).is_none());
        assert!(Key::secretbox("k", &[0; 16]).is_none());
    }
}
