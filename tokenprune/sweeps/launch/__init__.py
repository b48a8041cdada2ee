"""Where the cells of a sweep are computed: in this process, or on other machines."""
