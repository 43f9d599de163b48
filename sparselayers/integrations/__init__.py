"""Floor 4: other libraries; each is imported only when its integration is used."""
