from ffrepro.cli import main

main()
