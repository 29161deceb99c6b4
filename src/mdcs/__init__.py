"""mdcs: long-tailed image recognition with several experts."""
