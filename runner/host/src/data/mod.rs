//! Files to batches: formats, filters, tokens, order.
