"""Facts about countries, and the pages and questions that are written from them."""
