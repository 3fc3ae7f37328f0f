// Command guestprobe is PID 1 of the test guests: it keeps values in memory and on a disk and answers over the network.
//
// It is built as if it were a command of the agent's module, and does to a clone what the agent does.
package main

import (
	cryptorand "crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"torpor/guest/internal/clock"
	"torpor/guest/internal/entropy"
)

const address = "100.64.0.2"

func main() {
	console("guestprobe: started")
	if err := run(); err != nil {
		console("guestprobe: " + err.Error())
	}
	time.Sleep(time.Second)
	syscall.Sync()
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, fs := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(fs.at, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", fs.at, err)
		}
		if err := syscall.Mount(fs.kind, fs.at, fs.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", fs.at, err)
		}
	}
	words, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return fmt.Errorf("read the command line: %w", err)
	}
	if strings.Contains(string(words), "torpor.mode=probe") {
		console("TORPOR-PROBE-OK")
		return nil
	}
	if err := loadModules(); err != nil {
		return err
	}
	if err := raise("lo", "127.0.0.1", 8); err != nil {
		return err
	}
	if err := raise("eth0", address, 29); err != nil {
		return err
	}
	store := &store{values: map[string]string{}}
	console("guestprobe: serving")
	return http.ListenAndServe(address+":80", store.routes())
}

func console(line string) {
	// The kernel opens /dev/console for init; it works before /dev is mounted.
	_, _ = os.Stdout.WriteString(line + "\n")
}

func loadModules() error {
	order, err := os.ReadFile("/lib/modules/load-order")
	if err != nil {
		return fmt.Errorf("read the module list: %w", err)
	}
	for _, path := range strings.Fields(string(order)) {
		if err := loadModule(filepath.Join("/lib/modules", path)); err != nil {
			return err
		}
	}
	return nil
}

func loadModule(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open module: %w", err)
	}
	defer file.Close()
	empty := []byte{0}
	// The syscall package has no finit_module.
	number := map[string]uintptr{"amd64": 313, "arm64": 273}[runtime.GOARCH]
	if _, _, errno := syscall.Syscall(number, file.Fd(), uintptr(unsafe.Pointer(&empty[0])), 0); errno != 0 {
		return fmt.Errorf("load %s: %w", path, errno)
	}
	return nil
}

type ifreq struct {
	name [16]byte
	data [24]byte
}

// raise gives an interface an address and takes it up, waiting a moment for the device to appear.
func raise(name, ip string, bits int) error {
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer syscall.Close(socket)
	var a, b, c, d byte
	if _, err := fmt.Sscanf(ip, "%d.%d.%d.%d", &a, &b, &c, &d); err != nil {
		return fmt.Errorf("parse %s: %w", ip, err)
	}
	mask := ^uint32(0) << (32 - bits)
	set := []struct {
		call uintptr
		data [24]byte
	}{
		{syscall.SIOCSIFADDR, [24]byte{syscall.AF_INET, 0, 0, 0, a, b, c, d}},
		{syscall.SIOCSIFNETMASK, [24]byte{syscall.AF_INET, 0, 0, 0,
			byte(mask >> 24), byte(mask >> 16), byte(mask >> 8), byte(mask)}},
		{syscall.SIOCSIFFLAGS, [24]byte{syscall.IFF_UP | syscall.IFF_RUNNING}},
	}
	for _, step := range set {
		request := ifreq{data: step.data}
		copy(request.name[:], name)
		for attempt := 0; ; attempt++ {
			_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(socket), step.call, uintptr(unsafe.Pointer(&request)))
			if errno == 0 {
				break
			}
			if errno != syscall.ENODEV || attempt > 100 {
				return fmt.Errorf("set up %s: %w", name, errno)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

// store holds what the tests put into the guest.
type store struct {
	mutex  sync.Mutex
	values map[string]string
	block  []byte
}

func (s *store) routes() http.Handler {
	routes := http.NewServeMux()
	routes.HandleFunc("/memory/", s.memory)
	routes.HandleFunc("/disk/", s.disk)
	routes.HandleFunc("/block", s.fill)
	routes.HandleFunc("/drives", drives)
	routes.HandleFunc("/restored", restored)
	routes.HandleFunc("/random", random)
	routes.HandleFunc("/clock", wallClock)
	routes.HandleFunc("/say", say)
	return routes
}

func (s *store) memory(w http.ResponseWriter, r *http.Request) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	key := r.URL.Path
	if r.Method == http.MethodPut {
		body, _ := io.ReadAll(r.Body)
		s.values[key] = string(body)
		return
	}
	value, found := s.values[key]
	if !found {
		http.NotFound(w, r)
		return
	}
	_, _ = io.WriteString(w, value)
}

// fill: PUT makes or partly rewrites a block of ?mib= with pseudo-random bytes of ?seed=; GET answers its checksum.
func (s *store) fill(w http.ResponseWriter, r *http.Request) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if r.Method == http.MethodPut {
		var mib, seed int64
		_, _ = fmt.Sscan(r.URL.Query().Get("mib"), &mib)
		_, _ = fmt.Sscan(r.URL.Query().Get("seed"), &seed)
		if s.block == nil {
			s.block = make([]byte, mib<<20)
			rand.New(rand.NewSource(seed)).Read(s.block)
		}
		// One page in three, at random, so that dirty pages are scattered.
		source := rand.New(rand.NewSource(seed))
		for at := 0; at < len(s.block); at += 4096 {
			if source.Intn(3) == 0 {
				source.Read(s.block[at : at+16])
			}
		}
	}
	fmt.Fprintf(w, "%x", sha256.Sum256(s.block))
}

// drives answers the sizes of all drives in 512-byte sectors, in the order of their names.
func drives(w http.ResponseWriter, _ *http.Request) {
	for letter := 'a'; letter <= 'z'; letter++ {
		size, err := os.ReadFile(fmt.Sprintf("/sys/block/vd%c/size", letter))
		if err != nil {
			return
		}
		_, _ = w.Write(size)
	}
}

// restored gives a clone the time of ?ns= and the entropy of its body, as the agent does.
func restored(w http.ResponseWriter, r *http.Request) {
	var ns int64
	_, _ = fmt.Sscan(r.URL.Query().Get("ns"), &ns)
	seed, _ := io.ReadAll(r.Body)
	err := clock.Set(time.Unix(0, ns))
	if err == nil {
		err = entropy.Reseed(seed)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// random answers what the kernel's generator gives to whoever asks it now.
func random(w http.ResponseWriter, _ *http.Request) {
	drawn := make([]byte, 16)
	_, _ = cryptorand.Read(drawn)
	fmt.Fprintf(w, "%x", drawn)
}

func wallClock(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprint(w, time.Now().UnixNano())
}

// say writes the body on the console.
func say(_ http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	console(string(body))
}

// disk keeps one value in the first sector of /dev/vda, synchronously.
func (s *store) disk(w http.ResponseWriter, r *http.Request) {
	file, err := os.OpenFile("/dev/vda", os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer file.Close()
	sector := make([]byte, 4096)
	if r.Method == http.MethodPut {
		body, _ := io.ReadAll(r.Body)
		copy(sector, body)
		if _, err := file.WriteAt(sector, 0); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
		return
	}
	if _, err := file.ReadAt(sector, 0); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write([]byte(strings.TrimRight(string(sector), "\x00")))
}
