package kernel

const (
	sysFinitModule = 273
	sysSetns       = 268
	sysSyncfs      = 267
	sysFstatat     = 79
)
