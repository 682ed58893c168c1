"""Sums whose order depends on nothing but the number of terms."""

from torch import Tensor, cat


def tree_sum(terms: Tensor, dim: int) -> Tensor:
    """Returns the sum over ``dim`` by a fixed pairwise tree of elementwise additions.

    Library reductions choose their order by the whole tensor's size, so that a sum would change
    in the last bit with the items that share its batch. Here term k meets term k + 2^m, from the
    largest power of two down, as if the terms were padded with zeros to a power of two.
    """
    count = terms.shape[dim]
    if count == 0:
        return terms.sum(dim)
    while count > 1:
        half = 1 << ((count - 1).bit_length() - 1)
        paired = count - half
        head, tail = terms.narrow(dim, 0, half), terms.narrow(dim, half, paired)
        if paired == half:
            terms = head + tail
        else:
            unpaired = head.narrow(dim, paired, half - paired)
            terms = cat((head.narrow(dim, 0, paired) + tail, unpaired), dim)
        count = half
    return terms.select(dim, 0)
