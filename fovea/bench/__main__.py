from fovea.bench import main

raise SystemExit(main())
