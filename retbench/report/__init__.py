"""Everything between stored records and what the user sees; loads no torch."""
