"""Folk tunes in ABC notation: a recurrent network writes them, a reader checks and plays them."""
