package server

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"torpor/guest/internal/boot"
	"torpor/guest/internal/container"
	"torpor/guest/internal/process"
	"torpor/guest/internal/stream"
)

var registry = process.NewRegistry()

// agent serves on loopback to a peer and returns the server and its address.
func agent(t *testing.T, peer string) (*Server, string) {
	t.Helper()
	log := stream.NewLog(time.Now)
	server := &Server{
		Version: "0", Mode: boot.Builder, Registry: registry, Log: log,
		Application: container.New(t.TempDir(), registry, log, ""), PowerOff: func() {},
	}
	listener, err := Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddr(peer))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		server.Serve(listener)
		close(ended)
	}()
	t.Cleanup(func() {
		listener.Close()
		<-ended
	})
	return server, listener.Addr().String()
}

func call(t *testing.T, method, url, body string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://"+url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

func TestHelloSaysWhoAnswers(t *testing.T) {
	_, address := agent(t, "127.0.0.1")
	status, body := call(t, "GET", address+"/v1/hello", "")
	wanted := `{"protocol":1,"agent":"0","mode":"builder","application":{"state":"none","exit_code":0}}` + "\n"
	if status != 200 || body != wanted {
		t.Fatalf("%d %s", status, body)
	}
}

func TestAStrangerGetsNoAnswer(t *testing.T) {
	_, address := agent(t, "192.0.2.1")
	if _, err := http.Get("http://" + address + "/v1/hello"); err == nil {
		t.Fatal("answered")
	}
}

func TestAnErrorHasItsStatusAndItsReason(t *testing.T) {
	_, address := agent(t, "127.0.0.1")
	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"POST", "/v1/start", "{", 400},
		{"POST", "/v1/start", `{"args":["a"]}`, 409}, // a builder
		{"POST", "/v1/stop", `{}`, 409},
		{"POST", "/v1/restored", `{}`, 400},
		{"POST", "/v1/restored", `{"wall_clock_ns":1,"entropy":"!"}`, 400},
		{"POST", "/v1/hook", `{"name":"run","port":0,"timeout_ms":1}`, 400},
		{"GET", "/v1/stream?after=x", "", 400},
		{"POST", "/v1/exec", `{"args":[]}`, 400},
		{"POST", "/v1/exec", `{"args":["a"],"in":"moon"}`, 400},
		{"GET", "/v1/file", "", 400},
		{"GET", "/v1/file?path=/nothing/here", "", 404},
		{"GET", "/v1/file?path=/", "", 400},
		{"PUT", "/v1/file?path=/x&mode=9", "", 400},
		{"POST", "/v1/mount", `{"device":"/dev/vdz"}`, 400},
		{"POST", "/v1/session", "{}", 400},
	} {
		status, body := call(t, c.method, address+c.path, c.body)
		var answer struct{ Error string }
		if err := json.Unmarshal([]byte(body), &answer); status != c.status || err != nil || answer.Error == "" {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, status, body)
		}
	}
}

func TestACommandsOutputComesAsJSONLines(t *testing.T) {
	_, address := agent(t, "127.0.0.1")
	stdin := base64.StdEncoding.EncodeToString([]byte("hello"))
	status, body := call(t, "POST", address+"/v1/exec", `{"args":["sh","-c","cat; exit 2"],"stdin":"`+stdin+`"}`)
	if status != 200 || body != `{"stream":"stdout","data":"`+stdin+`"}`+"\n"+`{"exit_code":2}`+"\n" {
		t.Fatalf("%d %s", status, body)
	}
	_, body = call(t, "POST", address+"/v1/exec", `{"args":["no-such-command"]}`)
	if !strings.Contains(body, `{"error":"run command: `) {
		t.Fatal(body)
	}
}

func TestAFileGoesInAndComesOut(t *testing.T) {
	_, address := agent(t, "127.0.0.1")
	path := filepath.Join(t.TempDir(), "a/b")
	status, body := call(t, "PUT", address+"/v1/file?mode=0600&path="+path, "content")
	if status != 200 || body != `{"size":7}`+"\n" {
		t.Fatalf("%d %s", status, body)
	}
	if found, err := os.Stat(path); err != nil || found.Mode() != 0o600 {
		t.Fatal(found, err)
	}
	if status, body := call(t, "GET", address+"/v1/file?in=guest&path="+path, ""); status != 200 || body != "content" {
		t.Fatalf("%d %s", status, body)
	}
}

func TestTheStreamStartsAtOnceAndFollows(t *testing.T) {
	server, address := agent(t, "127.0.0.1")
	server.Log.Line("stdout", []byte("one"))
	response, err := http.Get("http://" + address + "/v1/stream?after=1")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	server.Log.Line("stdout", []byte("two"))
	line, err := bufio.NewReader(response.Body).ReadString('\n')
	if err != nil || !strings.Contains(line, `"seq":2`) || !strings.Contains(line, `"two"`) {
		t.Fatal(line, err)
	}
}

func TestConnectionsOfTheEarlierLifeAreClosedButForTheOneThatAsks(t *testing.T) {
	server, address := agent(t, "127.0.0.1")
	var conns []net.Conn
	for range 2 {
		conn, err := net.Dial("tcp4", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "GET /v1/hello HTTP/1.1\r\nHost: a\r\n\r\n")
		if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	var spared net.Conn
	server.door.mu.Lock()
	for known := range server.door.open {
		if known.RemoteAddr().String() == conns[1].LocalAddr().String() {
			spared = known
		}
	}
	server.door.mu.Unlock()
	server.door.closeOthers(spared)
	conns[0].SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := conns[0].Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Fatalf("the old connection: %v", err)
	}
	io.WriteString(conns[1], "GET /v1/hello HTTP/1.1\r\nHost: a\r\n\r\n")
	conns[1].SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := http.ReadResponse(bufio.NewReader(conns[1]), nil); err != nil {
		t.Fatalf("the spared connection: %v", err)
	}
}
