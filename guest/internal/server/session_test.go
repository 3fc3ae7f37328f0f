package server

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"torpor/guest/internal/execute"
)

// joined runs a command whose streams are frames, and returns the host's end.
func joined(t *testing.T, script string) (net.Conn, <-chan struct{}) {
	t.Helper()
	child, streams, err := execute.Open(execute.InGuest(registry, []string{"sh", "-c", script}, nil, "/"))
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	host, err := net.Dial("tcp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	agent, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	running := &program{child, streams[0], streams[1:], false}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer agent.Close()
		defer running.end()
		running.join(agent, bufio.NewReader(agent))
	}()
	host.(*net.TCPConn).SetLinger(0) // as the host does: what it still wanted to say does not hold up its end
	t.Cleanup(func() {
		host.Close()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Error("the session does not end")
		}
		<-child.Done()
	})
	return host, ended
}

func frame(kind byte, content string) string {
	return string(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(content)))) + content
}

// collect reads frames to the last: what each stream said, and the exit code, -1 without one.
func collect(t *testing.T, from io.Reader) (map[byte]string, int) {
	t.Helper()
	said := map[byte]string{}
	for {
		var head [5]byte
		if _, err := io.ReadFull(from, head[:]); err != nil {
			return said, -1
		}
		content := make([]byte, binary.BigEndian.Uint32(head[1:]))
		if _, err := io.ReadFull(from, content); err != nil {
			t.Fatal(err)
		}
		if head[0] == frameExit {
			return said, int(content[0])
		}
		said[head[0]] += string(content)
	}
}

func TestASessionCarriesStreamsApartAndTheExitCode(t *testing.T) {
	host, _ := joined(t, "cat; echo problem >&2; exit 3")
	io.WriteString(host, frame(frameInput, "a\n")+frame(frameInput, "b\n")+frame(frameEnd, ""))
	said, code := collect(t, host)
	if said[frameStdout] != "a\nb\n" || said[frameStderr] != "problem\n" || code != 3 {
		t.Fatal(said, code)
	}
}

func TestASlowHostGetsEverythingThatAnEndedProgramWrote(t *testing.T) {
	host, _ := joined(t, "head -c 3000000 /dev/zero | tr '\\0' x; printf end")
	time.Sleep(300 * time.Millisecond) // longer than a program that has ended is waited for
	said, code := collect(t, host)
	if text := said[frameStdout]; len(text) != 3000003 || !strings.HasSuffix(text, "xend") || code != 0 {
		t.Fatal(len(text), code)
	}
}

func TestAProgramIsKilledWhenTheHostHangsUpThoughItReadsNoInput(t *testing.T) {
	host, ended := joined(t, "sleep 1000")
	go func() {
		for {
			if _, err := io.WriteString(host, frame(frameInput, strings.Repeat("x", 1<<16))); err != nil {
				return
			}
		}
	}()
	time.Sleep(50 * time.Millisecond)
	host.Close()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("it lives")
	}
}

func TestInputNobodyWantsDoesNotEndASession(t *testing.T) {
	host, _ := joined(t, "exec <&-; sleep 0.2; exit 4")
	io.WriteString(host, frame(frameInput, "x")+frame(frameEnd, "")+frame(frameInput, "y"))
	if _, code := collect(t, host); code != 4 {
		t.Fatal(code)
	}
}

func TestWhatALeftProcessHoldsOpenDoesNotHoldASession(t *testing.T) {
	host, _ := joined(t, "sleep 1000 & echo started; exit 5")
	said, code := collect(t, host)
	if said[frameStdout] != "started\n" || code != 5 {
		t.Fatal(said, code)
	}
}

func TestFramesThatAreNoneEndASession(t *testing.T) {
	for _, bad := range []string{
		frame(frameResize, "abc"), frame(frameEnd, "x"), frame(9, ""),
		string(binary.BigEndian.AppendUint32([]byte{frameInput}, maxFrame+1)),
	} {
		host, _ := joined(t, "sleep 1000")
		io.WriteString(host, bad)
		if said, code := collect(t, host); code != -1 || len(said) != 0 {
			t.Fatalf("%q was taken: %v, %d", bad, said, code)
		}
	}
}

func TestASessionNeedsAnApplicationThatRuns(t *testing.T) {
	_, address := agent(t, "127.0.0.1")
	request, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+address+"/v1/session",
		strings.NewReader(`{"args":["true"]}`))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Upgrade", sessionProtocol)
	request.Header.Set("Connection", "Upgrade")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusConflict {
		t.Fatal(response.Status)
	}
}

func TestAnArchiveGoesInAndComesOut(t *testing.T) {
	_, address := agent(t, "127.0.0.1")
	from, to := t.TempDir(), t.TempDir()
	write(t, from+"/a/b", "content")
	status, archive := call(t, "GET", address+"/v1/archive?path="+from+"/a", "")
	if status != 200 {
		t.Fatal(status, archive)
	}
	status, counted := call(t, "PUT", address+"/v1/archive?base=c&path="+to, archive)
	if status != 200 || counted != `{"files":1,"bytes":7}`+"\n" {
		t.Fatal(status, counted)
	}
	if status, body := call(t, "GET", address+"/v1/file?path="+to+"/c/b", ""); status != 200 || body != "content" {
		t.Fatal(status, body)
	}
	for path, expected := range map[string]int{"?path=" + from + "/none": 404, "?path=/dev/null": 400, "": 400} {
		if status, body := call(t, "GET", address+"/v1/archive"+path, ""); status != expected {
			t.Fatal(path, status, body)
		}
	}
	if status, body := call(t, "PUT", address+"/v1/archive?base=c&path="+to, "no archive at all, "+body512); status == 200 {
		t.Fatal(body)
	}
}

var body512 = strings.Repeat("x", 512)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
