// The one place where a model's kind of attention is chosen: of queries, keys and values of heads. Another kind has cases
// and kept arrays of its own here, and blocks, tapes, plans and caches know these types alone.

/// What attention leaves for backward.
typealias KeptLayerAttention = KeptAttention
typealias LayerAttentionForward = SelfAttentionForward
typealias LayerAttentionBackward = SelfAttentionBackward
