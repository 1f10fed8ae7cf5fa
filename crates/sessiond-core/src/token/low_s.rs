//! Low-S signatures. For every ES256 signature `(r, s)`, `(r, n − s)` is valid too, and anyone can compute it without the key.
//! sessiond creates and accepts only the one with the smaller `s`. So a token has exactly one text, and its text or digest
//! identifies it.

/// The order of P-256, big-endian (FIPS 186-4, D.1.2.3).
const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa,
    0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

/// Half of the order, rounded down: the largest low `s`.
const HALF: [u8; 32] = [
    0x7f, 0xff, 0xff, 0xff, 0x80, 0x00, 0x00, 0x00, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xde, 0x73, 0x7d,
    0x56, 0xd3, 0x8b, 0xcf, 0x42, 0x79, 0xdc, 0xe5, 0x61, 0x7e, 0x31, 0x92, 0xa8,
];

/// Whether a signature has the low `s`.
pub(super) fn is_low(signature: &[u8; 64]) -> bool {
    signature[32..] <= HALF[..]
}

/// The same signature with the low `s`.
pub(super) fn lowered(signature: [u8; 64]) -> [u8; 64] {
    if is_low(&signature) { signature } else { other(signature) }
}

/// The same signature with `n − s` for `s`.
fn other(mut signature: [u8; 64]) -> [u8; 64] {
    let mut borrow = false;
    for (digit, order) in signature[32..].iter_mut().zip(ORDER).rev() {
        let (first, under) = order.overflowing_sub(*digit);
        let (difference, under_again) = first.overflowing_sub(borrow.into());
        (*digit, borrow) = (difference, under || under_again);
    }
    signature
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::token::decode;
    use crate::token::encode;

    /// The token with the other signature.
    pub(in crate::token) fn respelled(token: &str) -> String {
        let (message, signature) = token.rsplit_once('.').expect("a signature");
        format!("{message}.{}", encode(&other(decode(signature).expect("64 bytes"))))
    }

    #[test]
    fn the_two_values_of_s_add_up_to_the_order() {
        let with = |s: [u8; 32]| {
            let mut signature = [7; 64];
            signature[32..].copy_from_slice(&s);
            signature
        };
        let mut above = HALF;
        above[31] += 1;
        assert!(is_low(&with(HALF)) && !is_low(&with(above)));
        // The order is odd: twice the half is one less.
        assert_eq!(other(with(HALF)), with(above));
        assert_eq!(lowered(with(above)), with(HALF));
        let mut one = [0; 32];
        one[31] = 1;
        assert_eq!(lowered(other(with(one))), with(one));
    }
}
