"""This package has secure sums: the server learns the sum of phones' vectors modulo 2**bits and no single vector.

Masks that cancel in pairs over a sparse random graph, with secrets shared among neighbours so that phones may drop
out: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017; Bell et al.,
"Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020, the variant against a malicious server.
Nothing here knows Flower, a network or a clock; randomness is passed in.

    phone                                              server
    Advert: fresh public keys, signed              ->  list of all, its Merkle root
    draws k holders among the n on the list        <-  Roster: n, k, t, root, the phone's own place and proof
    Choice: its holders                            ->  graph: who chose whom, both directions
    checks the keys against the root               <-  Neighbours: keys of holders and of those who chose it
    Shares: seed and mask key, t of k, encrypted   ->
    adds its own mask and one for each neighbour   <-  Inbox: shares of those who chose it
    Masked: the vector, a token for each holder    ->  adds it up
    signs the list of survivors, once              <-  Survivors: the list, tokens of those who chose it
    Endorsement: its signature                     ->
    wants t signatures of its holders              <-  Endorsements: signatures on the very same list
    Reveal: of a survivor the seed's share, of     ->  removes what masks are left
    a dropped one the mask key's, never both

What both sides share: `terms`, `topology`, `merkle`, `keys`, `shamir`, `masks`, `packing`, `messages`. The sides are
`fedcaptor.client.secure_sum` and `fedcaptor.server.secure_sum`. What the graph must be for all this to hold is in
`topology`.
"""
