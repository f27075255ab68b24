"""What vendors of accelerators document about the files that their compilers take, checked without the compiler."""
