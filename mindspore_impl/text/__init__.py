"""Text to ids: the tokenizer, conversation records, and the chat template with its supervised mask."""
