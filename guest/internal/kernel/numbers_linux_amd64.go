package kernel

const (
	sysFinitModule = 313
	sysSetns       = 308
	sysSyncfs      = 306
	sysFstatat     = 262
)
