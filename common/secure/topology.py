"""Compute how many holders a phone draws and how many of them open a secret.

n phones, of which C = ceil(corrupted x n) side with the server and D = ceil(dropout x n) may be lost; h = n - C honest
ones. Each honest phone draws k holders uniformly without replacement from the other n - 1, after the list is committed
(Bell et al. 2020, section 4); its secrets open with t of k shares; H(N, K, k) is hypergeometric. Shares go to the drawn
holders alone, as those who draw a phone may be corrupted on purpose. Masks go both ways. Three conditions, each the
exact tail with a union bound:

1. *Correct.* n Pr[H(n-1, D, k) > k - t] <= 2**-correctness: every phone keeps t holders until the last phase (event E3
   of Bell et al., section 3.3).
2. *One answer, two views.* h Pr[H(n-1, C, k) >= 2t - k] <= 2**-(security+1): of c corrupted holders, 2t > k + c. An
   honest holder shows the seed's share or the mask key's, so not both secrets of one phone open. For the same reason
   not both of two lists, one with the phone and one without, get t signatures of its holders and open what they ask
   (section 4.2; Bonawitz et al. 2017, theorem 6.5, where all are holders).
3. *No small sum.* Let S be the honest phones in a sum that the server unmasks, from whatever different lists it showed.
   Each i in S has t holders that show its seed's share; the honest ones hold i's token, so their common mask is in i's
   vector; they show shares only with t signatures on a list that has them, so by 2 their mask keys stay closed, and
   the mask goes only if they are in S too. So each of S has t holders in S and the corrupted. For s phones that has at
   most the probability C(h, s) Pr[H(n-1, C+s-1, k) >= t]**s, as draws are independent. `least_honest` is the largest
   a for which these, over all s < a, total at most 2**-(security+1) (section 4.3 has the asymptotic form). It must be
   more than h / 2, so that no two disjoint sums can be learned from one cohort.

Larger t serves 2 and 3, so t is the largest that 1 allows and k the smallest that works.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedcaptor.common.arrays import Floats
from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.secure.terms import MAX_COHORT, Terms

MAX_HOLDERS = 255
"""Shares are points of GF(2**8) other than zero."""
_BLOCK = 1024


@dataclass(frozen=True)
class Topology:
    """Hold a graph's parameters: `phones` n, `holders` k a phone, `threshold` t.

    `least_honest`: fewest honest phones in any sum that can be
    unmasked. `max_degree`: most neighbours that a phone accepts, holders and those who chose it.
    """

    phones: int
    holders: int
    threshold: int
    least_honest: int
    max_degree: int


def plan_topology(terms: Terms, phones: int) -> Topology:
    """Find the smallest graph for `phones` phones.

    Raises PrivacyError when none of at most 255 holders meets the terms.
    """
    terms.require_list(phones)
    return _plan(phones, terms.dropout, terms.corrupted, terms.correctness, terms.security)


def check_topology(terms: Terms, phones: int, holders: int, threshold: int) -> Topology:
    """Check on a phone what a server announces. Raises PrivacyError unless conditions 2 and 3 hold.

    Condition 1 is the server's own concern.
    """
    terms.require_list(phones)
    if not 1 <= threshold <= holders <= min(phones - 1, MAX_HOLDERS):
        raise PrivacyError(
            f"secure sum: threshold {threshold} of {holders} holders among {phones} phones, must be 1 to holders, and "
            f"holders at most {min(phones - 1, MAX_HOLDERS)}: decline"
        )
    least = _least_honest(phones, math.ceil(terms.corrupted * phones), holders, threshold, terms.security)
    if least is None:
        raise PrivacyError(
            f"secure sum: threshold {threshold} of {holders} holders among {phones} phones is not safe when "
            f"{terms.corrupted:.0%} are corrupted (2**-{terms.security}): decline"
        )
    return Topology(phones, holders, threshold, least, _max_degree(phones, holders, terms.correctness))


def fewest_honest(terms: Terms) -> int:
    """Return `least_honest` of the worst list of keys and parameters that phones accept: condition 3 at its bound."""
    return (terms.fewest - math.ceil(terms.corrupted * terms.fewest)) // 2 + 1


def most_corrupted(terms: Terms, topology: Topology) -> int:
    """Return how many corrupted holders an honest phone draws at most, but for 2**-(security+1) over the cohort."""
    n, k = topology.phones, topology.holders
    c = math.ceil(terms.corrupted * n)
    mass = _log_hypergeometric(n - 1, np.array([float(c)]), k, np.arange(k + 1.0))[0]
    at_least = np.logaddexp.accumulate(mass[::-1])[::-1]  # log Pr[so many corrupted ones or more]
    above = np.append(at_least[1:], -np.inf)
    return int(np.flatnonzero(above + math.log(n - c) <= -(terms.security + 1) * math.log(2))[0])


@lru_cache(maxsize=64)
def _plan(n: int, dropout: float, corrupted: float, correctness: int, security: int) -> Topology:
    c, d, most = math.ceil(corrupted * n), math.ceil(dropout * n), min(n - 1, MAX_HOLDERS)
    for k in range(1, most + 1):
        t = _largest_threshold(n, d, k, correctness)
        least = _least_honest(n, c, k, t, security) if t else None
        if least is not None:
            return Topology(n, k, t, least, _max_degree(n, k, correctness))
    raise PrivacyError(
        f"secure sum: no threshold of at most {most} holders is safe for {n} phones with {dropout:.0%} dropouts and "
        f"{corrupted:.0%} corrupted (2**-{correctness}, 2**-{security}): lower one of the two, or ask "
        f"{'more' if n <= MAX_HOLDERS else 'fewer'} phones"
    )


def _largest_threshold(n: int, d: int, k: int, correctness: int) -> int:
    """Find the largest threshold that meets condition 1; 0 when none does."""
    lost = np.arange(k + 1.0)
    tail = np.logaddexp.accumulate(_log_hypergeometric(n - 1, np.array([float(d)]), k, lost)[0, ::-1])[::-1]
    above = np.append(tail[1:], -np.inf)  # log Pr[more than `lost` holders are lost]
    fine = np.flatnonzero(above + math.log(n) <= -correctness * math.log(2))
    return k - int(fine[0])


@lru_cache(maxsize=64)
def _least_honest(n: int, c: int, k: int, t: int, security: int) -> int | None:
    """Return condition 3's bound, None where it or condition 2 does not hold."""
    h, allowed = n - c, -(security + 1) * math.log(2)
    if 2 * t <= k or math.log(h) + float(_log_tail(n - 1, np.array([float(c)]), k, 2 * t - k)[0]) > allowed:
        return None
    s = np.arange(1.0, h + 1)
    closed = np.logaddexp.accumulate(_log_choose(h, s) + s * _log_tail(n - 1, c + s - 1, k, t))
    beyond = np.flatnonzero(closed > allowed)
    least = int(beyond[0]) + 1 if beyond.size else h
    return least if 2 * least > h else None


def _max_degree(n: int, k: int, correctness: int) -> int:
    """Bound holders and those who chose it: any of n honest phones exceeds it with probability 2**-correctness."""
    if k >= n - 1:
        return n - 1
    chose, share = np.arange(float(n)), k / (n - 1)
    mass = _log_choose(n - 1, chose) + chose * math.log(share) + (n - 1 - chose) * math.log1p(-share)
    tail = np.logaddexp.accumulate(mass[::-1])[::-1]  # log Pr[at least so many chose it]
    fine = np.flatnonzero(tail[k + 1 :] + math.log(n) <= -correctness * math.log(2))
    return min(n - 1, k + (k + int(fine[0]) if fine.size else n - 1))


def _log_tail(population: int, marked: Floats, k: int, t: int) -> Floats:
    """Return log Pr[H(population, marked, k) >= t] for each of `marked`, a block of them at a time: a phone computes
    this for as many phones as a server names.
    """
    x = np.arange(t, k + 1.0)
    blocks = (marked[start : start + _BLOCK] for start in range(0, len(marked), _BLOCK))
    tails = [np.logaddexp.reduce(_log_hypergeometric(population, block, k, x), axis=1) for block in blocks]
    return np.minimum(np.concatenate(tails), 0.0)


def _log_hypergeometric(population: int, marked: Floats, k: int, x: Floats) -> Floats:
    """Return the log probability of x marked ones among k drawn, [marked, x]."""
    m = marked[:, None]
    possible = (x <= m) & (k - x <= population - m)
    mass = _log_choose(m, x) + _log_choose(population - m, k - x) - _log_choose(population, k)
    return np.where(possible, mass, -np.inf)


def _log_choose(n: Floats | int, k: Floats | int) -> Floats:
    """Return the log of n over k for whole numbers, anything where k is not among 0 to n."""
    table = _log_factorials()
    whole, part = np.asarray(n, np.int64), np.asarray(k, np.int64)
    rest = np.maximum(whole - part, 0)
    return np.asarray(table[np.maximum(whole, 0)] - table[np.maximum(part, 0)] - table[rest])


@lru_cache(maxsize=1)
def _log_factorials() -> Floats:
    """Tabulate log factorials for as many phones as a cohort may have, by `math`: a phone needs no scipy."""
    return np.array([math.lgamma(n + 1.0) for n in range(MAX_COHORT + 1)])
