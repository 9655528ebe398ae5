//! When to stop halving. A row that is refused among many is found by its halvings; where every second row is refused, they
//! cost four statements for each, and one by one it is two.

/// So many refused rows within so many rows are dense.
const MANY: usize = 8;
const WITHIN: usize = 64;

/// Whether many of the rows just before `next` were refused, of all that were, in order.
pub(super) fn is_dense(refused: &[usize], next: usize) -> bool {
    refused.len().checked_sub(MANY).is_some_and(|index| next - refused[index] <= WITHIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dense_is_what_was_refused_just_before() {
        let refused: Vec<usize> = (0..8).map(|n| n * 2).collect();
        assert!(is_dense(&refused, 16) && !is_dense(&refused[1..], 16), "one of many is not dense");
        assert!(is_dense(&refused, WITHIN) && !is_dense(&refused, WITHIN + 1), "nor are those of long ago");
    }
}
