package container

// The parts of the OCI runtime configuration that the agent writes (config.json of a bundle).

const cgroupPath = "/system.slice/app"

// Cgroup is the directory of the application's cgroup, as the guest sees it.
const Cgroup = "/sys/fs/cgroup" + cgroupPath

type ociConfig struct {
	Version  string     `json:"ociVersion"`
	Process  ociProcess `json:"process"`
	Root     ociRoot    `json:"root"`
	Hostname string     `json:"hostname,omitempty"`
	Mounts   []ociMount `json:"mounts"`
	Linux    ociLinux   `json:"linux"`
}

type ociRoot struct {
	Path string `json:"path"`
}

type ociProcess struct {
	Terminal     bool            `json:"terminal"`
	User         ociUser         `json:"user"`
	Args         []string        `json:"args"`
	Env          []string        `json:"env"`
	Cwd          string          `json:"cwd"`
	Capabilities ociCapabilities `json:"capabilities"`
	Rlimits      []ociRlimit     `json:"rlimits"`
	// OOMScoreAdj undoes the protection that children inherit from the agent.
	OOMScoreAdj int `json:"oomScoreAdj"`
}

type ociUser struct {
	UID            uint32   `json:"uid"`
	GID            uint32   `json:"gid"`
	AdditionalGids []uint32 `json:"additionalGids,omitempty"`
}

type ociCapabilities struct {
	Bounding  []string `json:"bounding"`
	Effective []string `json:"effective"`
	Permitted []string `json:"permitted"`
}

type ociRlimit struct {
	Type string `json:"type"`
	Hard uint64 `json:"hard"`
	Soft uint64 `json:"soft"`
}

type ociMount struct {
	Destination string   `json:"destination"`
	Type        string   `json:"type"`
	Source      string   `json:"source"`
	Options     []string `json:"options,omitempty"`
}

type ociNamespace struct {
	Type string `json:"type"`
}

type ociDevice struct {
	Path     string `json:"path"`
	Type     string `json:"type"`
	Major    int64  `json:"major"`
	Minor    int64  `json:"minor"`
	FileMode uint32 `json:"fileMode"`
	UID      uint32 `json:"uid"`
	GID      uint32 `json:"gid"`
}

type ociLinux struct {
	Namespaces    []ociNamespace `json:"namespaces"`
	CgroupsPath   string         `json:"cgroupsPath"`
	Devices       []ociDevice    `json:"devices,omitempty"`
	MaskedPaths   []string       `json:"maskedPaths,omitempty"`
	ReadonlyPaths []string       `json:"readonlyPaths,omitempty"`
}

// defaultCapabilities are the 14 of mask a80425fb (spec 2.7).
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SYS_CHROOT", "CAP_MKNOD", "CAP_AUDIT_WRITE", "CAP_SETFCAP",
}

// allCapabilities are the 41 of mask 1ffffffffff (spec 2.7).
var allCapabilities = append([]string{
	"CAP_DAC_READ_SEARCH", "CAP_LINUX_IMMUTABLE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
	"CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT",
	"CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_LEASE", "CAP_AUDIT_CONTROL",
	"CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ",
	"CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}, defaultCapabilities...)

var (
	// What Docker hides from and write-protects in a container.
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

	fuse = ociDevice{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: 0o666}
)

// configure describes the container: the guest's own network, everything else apart from the guest.
func configure(order Start, user identity, root string) ociConfig {
	config := ociConfig{
		Version:  "1.0.2",
		Process:  task(order.Args, environment(order.Env, user.home), order.Cwd, user, order.AllCapabilities),
		Root:     ociRoot{root},
		Hostname: order.Hostname,
		Mounts:   mounts(order.AllCapabilities),
		Linux: ociLinux{
			Namespaces:  []ociNamespace{{"pid"}, {"mount"}, {"ipc"}, {"uts"}, {"cgroup"}},
			CgroupsPath: cgroupPath,
		},
	}
	if order.AllCapabilities {
		config.Linux.Devices = []ociDevice{fuse}
	} else {
		config.Linux.MaskedPaths, config.Linux.ReadonlyPaths = maskedPaths, readonlyPaths
	}
	return config
}

func task(args, env []string, cwd string, user identity, everything bool) ociProcess {
	capabilities := defaultCapabilities
	if everything {
		capabilities = allCapabilities
	}
	if cwd == "" {
		cwd = "/"
	}
	return ociProcess{
		User:         ociUser{user.uid, user.gid, user.groups},
		Args:         args,
		Env:          env,
		Cwd:          cwd,
		Capabilities: ociCapabilities{capabilities, capabilities, capabilities},
		Rlimits:      []ociRlimit{{"RLIMIT_NOFILE", 1024, 1024}}, // spec 2.7
	}
}

func mounts(everything bool) []ociMount {
	sysfs := []string{"nosuid", "noexec", "nodev", "ro"}
	if everything {
		sysfs = sysfs[:3]
	}
	list := []ociMount{
		{"/proc", "proc", "proc", []string{"nosuid", "noexec", "nodev"}},
		{"/dev", "tmpfs", "tmpfs", []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{"/dev/pts", "devpts", "devpts", []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{"/dev/shm", "tmpfs", "shm", []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{"/dev/mqueue", "mqueue", "mqueue", []string{"nosuid", "noexec", "nodev"}},
		{"/sys", "sysfs", "sysfs", sysfs},
	}
	if everything {
		list = append(list, ociMount{"/sys/fs/cgroup", "cgroup2", "cgroup", []string{"nosuid", "noexec", "nodev", "rw"}})
	}
	return list
}
