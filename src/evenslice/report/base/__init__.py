"""What all pages share: style, wording, drawing, templates."""
