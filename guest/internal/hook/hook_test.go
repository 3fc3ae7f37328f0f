package hook

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"
)

func serve(t *testing.T, answer http.HandlerFunc) int {
	t.Helper()
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	return int(netip.MustParseAddrPort(server.Listener.Addr().String()).Port())
}

func TestAHookIsABarePostFromLoopback(t *testing.T) {
	var seen *http.Request
	var body []byte
	port := serve(t, func(w http.ResponseWriter, r *http.Request) {
		seen = r
		body, _ = io.ReadAll(r.Body)
	})
	answer := Do(t.Context(), Call{Name: "resume", Port: port, TimeoutMs: 5000})
	if answer.Status != 200 || answer.Failure != "" {
		t.Fatalf("%+v", answer)
	}
	if seen.Method != "POST" || seen.URL.Path != "/aws/lambda-microvms/runtime/v1/resume" || seen.ProtoMinor != 1 {
		t.Fatalf("%s %s", seen.Method, seen.URL)
	}
	host, _, _ := net.SplitHostPort(seen.Host)
	_, hasAgent := seen.Header["User-Agent"]
	_, hasType := seen.Header["Content-Type"]
	if host != "localhost" || hasAgent || hasType || len(body) != 0 || seen.RemoteAddr[:10] != "127.0.0.1:" {
		t.Fatalf("host %s, from %s, headers %v, body %q", seen.Host, seen.RemoteAddr, seen.Header, body)
	}
	payload := `{"microvmId":"m"}`
	Do(t.Context(), Call{Name: "run", Port: port, Body: &payload, TimeoutMs: 5000})
	if string(body) != payload || seen.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("headers %v, body %q", seen.Header, body)
	}
}

func TestEveryStatusIsAnAnswerAndRedirectsAreNotFollowed(t *testing.T) {
	for _, status := range []int{200, 302, 404, 503} {
		calls := 0
		port := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			calls++
			w.Header().Set("Location", "/")
			w.WriteHeader(status)
		})
		answer := Do(t.Context(), Call{Name: "ready", Port: port, TimeoutMs: 5000})
		if answer.Status != status || calls != 1 {
			t.Fatalf("%d: %+v after %d calls", status, answer, calls)
		}
	}
}

func TestTheFailureSaysWhatHappened(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	slow := serve(t, func(http.ResponseWriter, *http.Request) { <-release })
	broken := serve(t, func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) })
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := listener.Addr().(*net.TCPAddr).Port
	listener.Close()
	for failure, port := range map[string]int{"timeout": slow, "broken": broken, "refused": closed} {
		started := time.Now()
		answer := Do(t.Context(), Call{Name: "run", Port: port, TimeoutMs: 300})
		if answer.Status != 0 || answer.Failure != failure || time.Since(started) > 5*time.Second {
			t.Fatalf("%s: %+v", failure, answer)
		}
	}
}
