"""Programs that measure or estimate speed, cost and reliability; nothing else imports them."""
