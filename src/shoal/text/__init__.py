"""Text: documents from files or the hub, cut into four slices by content, as samples of token ids."""
