package server

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"torpor/guest/internal/boot"
	"torpor/guest/internal/clock"
	"torpor/guest/internal/connections"
	"torpor/guest/internal/container"
	"torpor/guest/internal/entropy"
	"torpor/guest/internal/execute"
	"torpor/guest/internal/hook"
	"torpor/guest/internal/network"
)

func (s *Server) hello(w http.ResponseWriter, _ *http.Request) error {
	return answer(w, http.StatusOK, struct {
		Protocol    int             `json:"protocol"`
		Agent       string          `json:"agent"`
		Mode        boot.Mode       `json:"mode"`
		Application container.State `json:"application"`
	}{Protocol, s.Version, s.Mode, s.Application.State()})
}

func (s *Server) start(w http.ResponseWriter, r *http.Request) error {
	order, err := read[container.Start](w, r)
	if err != nil {
		return err
	}
	if s.Mode != boot.Application {
		return refuse(http.StatusConflict, "start application: this guest is a %s", s.Mode)
	}
	if err := s.Application.Start(order); errors.Is(err, container.ErrRunning) {
		return err
	} else if err != nil {
		return refusal{http.StatusUnprocessableEntity, err}
	}
	return done(w)
}

func (s *Server) restored(w http.ResponseWriter, r *http.Request) error {
	order, err := read[struct {
		WallClockNs     int64  `json:"wall_clock_ns"`
		Entropy         []byte `json:"entropy"`
		DropConnections bool   `json:"drop_connections"`
	}](w, r)
	if err != nil {
		return err
	}
	if order.WallClockNs <= 0 || len(order.Entropy) < 32 || len(order.Entropy) > 4096 {
		return refuse(http.StatusBadRequest, "restore: needs wall_clock_ns and 32 to 4096 bytes of entropy")
	}
	if err := clock.Set(time.Unix(0, order.WallClockNs)); err != nil {
		return err
	}
	if err := entropy.Reseed(order.Entropy); err != nil {
		return err
	}
	if order.DropConnections {
		if err := s.dropConnections(r.Context()); err != nil {
			return err
		}
	}
	return done(w)
}

// dropConnections ends what the earlier life left, the host's own connections to the agent but this one included.
func (s *Server) dropConnections(ctx context.Context) error {
	if conn, isKnown := ctx.Value(connKey{}).(net.Conn); isKnown && s.door != nil {
		s.door.closeOthers(conn)
	}
	agent := netip.AddrPortFrom(network.AgentAddress, network.Port)
	_, err := connections.Drop(func(local netip.AddrPort) bool { return local == agent })
	return err
}

func (s *Server) closeConnections(w http.ResponseWriter, r *http.Request) error {
	order, err := read[struct {
		WithinMs int64 `json:"within_ms"`
	}](w, r)
	if err != nil {
		return err
	}
	if order.WithinMs < 0 || order.WithinMs > 10_000 {
		return refuse(http.StatusBadRequest, "close connections: within_ms is 0 to 10000")
	}
	open, err := connections.Close(container.Cgroup, time.Duration(order.WithinMs)*time.Millisecond)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, struct {
		Open int `json:"open"`
	}{open})
}

func (s *Server) hook(w http.ResponseWriter, r *http.Request) error {
	call, err := read[hook.Call](w, r)
	if err != nil {
		return err
	}
	if call.Name == "" || call.Port < 1 || call.Port > 65535 || call.TimeoutMs <= 0 {
		return refuse(http.StatusBadRequest, "call hook: needs name, port and timeout_ms")
	}
	return answer(w, http.StatusOK, hook.Do(r.Context(), call))
}

func (s *Server) stream(w http.ResponseWriter, r *http.Request) error {
	after := int64(0)
	if text := r.URL.Query().Get("after"); text != "" {
		var err error
		if after, err = strconv.ParseInt(text, 10, 64); err != nil || after < 0 {
			return refuse(http.StatusBadRequest, "read stream: after=%q is no sequence number", text)
		}
	}
	write := jsonLines(w)
	if err := write(nil); err != nil { // the host sees at once that the stream is open
		return nil
	}
	s.Log.Follow(r.Context(), after, beatEvery, write) // it ends by the host's hanging up, which is no error
	return nil
}

// jsonLines begins an answer of newline-delimited JSON; each write goes out at once.
func jsonLines(w http.ResponseWriter) func([]byte) error {
	w.Header().Set("Content-Type", "application/x-ndjson")
	control := http.NewResponseController(w)
	return func(line []byte) error {
		if _, err := w.Write(line); err != nil {
			return err
		}
		return control.Flush()
	}
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) error {
	order, err := read[struct {
		Args  []string `json:"args"`
		Env   []string `json:"env"`
		Cwd   string   `json:"cwd"`
		User  string   `json:"user"`
		In    string   `json:"in"`
		Stdin []byte   `json:"stdin"`
	}](w, r)
	if err != nil {
		return err
	}
	if len(order.Args) == 0 {
		return refuse(http.StatusBadRequest, "run command: no args")
	}
	var launch execute.Launch
	switch order.In {
	case "guest", "":
		launch = execute.InGuest(s.Registry, order.Args, order.Env, order.Cwd)
	case "application":
		launch = s.Application.Launch(container.Exec{Args: order.Args, Env: order.Env, Cwd: order.Cwd, User: order.User})
	default:
		return refuse(http.StatusBadRequest, "run command: in=%q is no place", order.In)
	}
	write := jsonLines(w)
	emit := func(event execute.Event) error {
		line, err := json.Marshal(event)
		if err != nil {
			return err
		}
		return write(append(line, '\n'))
	}
	if err := execute.Run(r.Context(), launch, order.Stdin, emit); err != nil {
		emit(execute.Event{Error: "run command: " + err.Error()})
	}
	return nil
}

func (s *Server) mount(w http.ResponseWriter, r *http.Request) error {
	order, err := read[struct {
		Device   string `json:"device"`
		Target   string `json:"target"`
		Type     string `json:"type"`
		ReadOnly bool   `json:"read_only"`
	}](w, r)
	if err != nil {
		return err
	}
	if order.Device == "" || order.Target == "" || order.Type == "" {
		return refuse(http.StatusBadRequest, "mount: needs device, target and type")
	}
	if err := boot.Disk(order.Device, order.Target, order.Type, order.ReadOnly); err != nil {
		return err
	}
	return done(w)
}

func (s *Server) sync(w http.ResponseWriter, _ *http.Request) error {
	syscall.Sync()
	return done(w)
}

func (s *Server) stop(w http.ResponseWriter, r *http.Request) error {
	order, err := read[struct {
		TimeoutMs int64 `json:"timeout_ms"`
	}](w, r)
	if err != nil {
		return err
	}
	if order.TimeoutMs < 0 {
		return refuse(http.StatusBadRequest, "stop application: timeout_ms is negative")
	}
	code, err := s.Application.Stop(time.Duration(order.TimeoutMs) * time.Millisecond)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]int{"exit_code": code})
}

// lastWords is how long the answer to a power-off has to leave the guest.
const lastWords = 50 * time.Millisecond

func (s *Server) powerOff(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Connection", "close")
	done(w)
	time.AfterFunc(lastWords, s.PowerOff)
	return http.NewResponseController(w).Flush()
}
