"""From prompts to what the UNet reads of them: tokens, encodings, and the edit of the concepts that they name."""
