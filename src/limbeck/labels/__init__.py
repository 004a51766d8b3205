"""Label rules: from an expert's logits to the labels that a distilled set stores."""
