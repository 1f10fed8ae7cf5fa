//! The bucket of a user.

use std::fmt;

use aws_lc_rs::hmac;

use crate::id::Bucket;
use crate::id::UserId;

random_bytes! {
    /// The key by which one project's users are assigned to buckets. It never changes: a user's rows are where it says.
    ///
    /// A keyed hash, because users often choose their own names: without the key, nobody can choose names that all fall into one
    /// bucket. It protects the balance of the load and no secret, so it is stored as it is.
    #[derive(Clone, PartialEq, Eq)]
    BucketKey
}

/// Omits the key: the output may reach a log.
impl fmt::Debug for BucketKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("BucketKey").finish_non_exhaustive()
    }
}

impl BucketKey {
    /// The user's bucket: the first bits of the HMAC-SHA-256 of the user's id.
    pub fn bucket(&self, user: &UserId) -> Bucket {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.0), user.as_str().as_bytes());
        Bucket::from_number(u16::from_be_bytes(*tag.as_ref().first_chunk().expect("32 bytes")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(number: u32) -> UserId {
        UserId::parse(&format!("user-{number}")).expect("an id")
    }

    #[test]
    fn a_bucket_follows_from_the_key_and_the_user() {
        // RFC 4231 §4.2, test case 1, has a key of 20 bytes, which HMAC extends with zeros; its tag begins with b034.
        let mut bytes = [0; 32];
        bytes[..20].fill(0x0b);
        let key = BucketKey::from_bytes(&bytes).expect("32 bytes");
        let there = UserId::parse("Hi There").expect("an id");
        assert_eq!(key.bucket(&there).number(), 0x034);
        assert_eq!(BucketKey::from_bytes(key.as_bytes()).map(|same| same.bucket(&there)), Some(key.bucket(&there)));
        assert!(BucketKey::from_bytes(&bytes[1..]).is_none());
        assert!(!format!("{key:?}").contains("11"), "the key is not printed");
    }

    /// With 100 users to a bucket on average, a bucket has more than 200 once in 10^18.
    #[test]
    fn users_are_spread_over_all_buckets() {
        let key = BucketKey::generate();
        let mut counts = vec![0_u32; usize::from(Bucket::COUNT)];
        for number in 0..100 * u32::from(Bucket::COUNT) {
            counts[usize::from(key.bucket(&user(number)).number())] += 1;
        }
        assert!(counts.iter().all(|count| (20..200).contains(count)));
        let other = BucketKey::generate();
        let same = (0..1_000).filter(|number| key.bucket(&user(*number)) == other.bucket(&user(*number))).count();
        assert!(same < 20, "another project's users are spread differently");
    }
}
