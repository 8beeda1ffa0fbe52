"""Programs that measure or estimate what a run costs; nothing else imports them."""
