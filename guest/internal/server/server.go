// Package server is the agent's HTTP face (PROTOCOL.md).
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"

	"torpor/guest/internal/boot"
	"torpor/guest/internal/container"
	"torpor/guest/internal/files"
	"torpor/guest/internal/process"
	"torpor/guest/internal/stream"
)

const (
	// Protocol is the number of the contract between host and agent.
	Protocol = 1

	maxJSON = 64 << 20 // bytes; exec carries standard input
	maxFile = 16 << 30 // bytes

	headerTimeout = 10 * time.Second
	beatEvery     = 5 * time.Second
)

// Server answers the host.
type Server struct {
	Version     string
	Mode        boot.Mode
	Registry    *process.Registry
	Log         *stream.Log
	Application *container.Application
	// PowerOff ends the guest; it is called after the answer has been sent.
	PowerOff func()

	door *doorkeeper
}

type connKey struct{}

// Serve answers until the listener, made by Listen, is closed.
func (s *Server) Serve(listener net.Listener) error {
	s.door, _ = listener.(*doorkeeper)
	server := &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: headerTimeout,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, conn)
		},
	}
	return server.Serve(listener)
}

func (s *Server) routes() http.Handler {
	routes := http.NewServeMux()
	for pattern, call := range map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /v1/hello":              s.hello,
		"POST /v1/start":             s.start,
		"POST /v1/restored":          s.restored,
		"POST /v1/hook":              s.hook,
		"POST /v1/close-connections": s.closeConnections,
		"GET /v1/stream":             s.stream,
		"POST /v1/exec":              s.exec,
		"POST /v1/session":           s.session,
		"PUT /v1/file":               s.putFile,
		"GET /v1/file":               s.getFile,
		"PUT /v1/archive":            s.putArchive,
		"GET /v1/archive":            s.getArchive,
		"POST /v1/mount":             s.mount,
		"POST /v1/sync":              s.sync,
		"POST /v1/stop":              s.stop,
		"POST /v1/poweroff":          s.powerOff,
	} {
		routes.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := call(w, r); err != nil {
				answer(w, statusOf(err), map[string]string{"error": err.Error()})
			}
		})
	}
	return routes
}

// refusal is an error with the HTTP status that fits it.
type refusal struct {
	status int
	error
}

func (r refusal) Unwrap() error { return r.error }

func refuse(status int, format string, values ...any) error {
	return refusal{status, fmt.Errorf(format, values...)}
}

func statusOf(err error) int {
	var refused refusal
	switch {
	case errors.As(err, &refused):
		return refused.status
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return http.StatusNotFound
	case errors.Is(err, container.ErrRunning), errors.Is(err, container.ErrNotRunning):
		return http.StatusConflict
	case errors.Is(err, files.ErrNotRegular), errors.Is(err, files.ErrUnpackable),
		errors.Is(err, syscall.EISDIR):
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}

func answer(w http.ResponseWriter, status int, value any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(value) // an error is the host's hanging up
	return nil
}

func done(w http.ResponseWriter) error { return answer(w, http.StatusOK, struct{}{}) }

func read[T any](w http.ResponseWriter, r *http.Request) (T, error) {
	var value T
	body := http.MaxBytesReader(w, r.Body, maxJSON)
	if err := json.NewDecoder(body).Decode(&value); err != nil && !errors.Is(err, io.EOF) {
		return value, refuse(http.StatusBadRequest, "read request: %w", err)
	}
	io.Copy(io.Discard, body) // to its end: only then does net/http notice when the host hangs up
	return value, nil
}
