// Package hook calls the application's lifecycle hooks over loopback (spec 3.2).
package hook

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Call is one hook to be called once. Whether to try again is the caller's decision.
type Call struct {
	Name      string  `json:"name"`
	Port      int     `json:"port"`
	Body      *string `json:"body"`
	TimeoutMs int64   `json:"timeout_ms"`
}

// Answer is an HTTP status, or 0 and why there is none: timeout, refused or broken.
type Answer struct {
	Status     int    `json:"status"`
	Failure    string `json:"failure,omitempty"`
	DurationMs int64  `json:"duration_ms"`
}

// maxAnswer bounds how much of the application's answer is read, in bytes. Nobody looks at it.
const maxAnswer = 64 << 10

// Do calls the hook. The timeout counts everything from the connection to the end of the answer's head.
func Do(ctx context.Context, call Call) Answer {
	started := time.Now()
	ctx, cancel := context.WithTimeout(ctx, time.Duration(call.TimeoutMs)*time.Millisecond)
	defer cancel()
	status, err := post(ctx, call)
	answer := Answer{Status: status, DurationMs: time.Since(started).Milliseconds()}
	if err != nil {
		answer.Failure = failure(err)
	}
	return answer
}

func post(ctx context.Context, call Call) (int, error) {
	var body io.Reader
	if call.Body != nil {
		body = strings.NewReader(*call.Body)
	}
	url := fmt.Sprintf("http://localhost:%d/aws/lambda-microvms/runtime/v1/%s", call.Port, call.Name)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
	if err != nil {
		return 0, err
	}
	request.Header["User-Agent"] = nil // none at all, not Go's
	request.Close = true
	if call.Body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	return exchange(ctx, request, call.Port)
}

// exchange sends the request over a connection of its own: no connection outlives a hook, since the next one may come
// after a restore. Without http.Transport, whose goroutines are most of what would run here for the first time.
func exchange(ctx context.Context, request *http.Request, port int) (int, error) {
	var dialer net.Dialer
	connection, err := dialer.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return 0, err
	}
	defer connection.Close()
	if deadline, isSet := ctx.Deadline(); isSet {
		connection.SetDeadline(deadline)
	}
	defer context.AfterFunc(ctx, func() { connection.Close() })()
	sent := request.Write(connection)
	reader := bufio.NewReader(connection)
	response, err := finalResponse(reader, request)
	if err != nil {
		return 0, cmp.Or(ctx.Err(), sent, err) // an answer may come though not all of the request was read
	}
	defer response.Body.Close()
	io.Copy(io.Discard, io.LimitReader(response.Body, maxAnswer)) // the status stands, whatever becomes of the rest
	return response.StatusCode, nil
}

func finalResponse(reader *bufio.Reader, request *http.Request) (*http.Response, error) {
	for {
		response, err := http.ReadResponse(reader, request)
		if err != nil || response.StatusCode >= http.StatusOK || response.StatusCode == http.StatusSwitchingProtocols {
			return response, err
		}
	}
}

func failure(err error) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	default:
		return "broken"
	}
}
