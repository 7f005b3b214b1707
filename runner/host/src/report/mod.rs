//! What a run leaves for others: TensorBoard events, Hugging Face directories, model cards.
