// Command probe is a guarded service for the fault tests and the benchmark: see tests/guards/README.md.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"sort"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"sessiond.example/guard"
)

type clock struct{ ahead atomic.Int64 }

var start = time.Now()

func (c *clock) Elapsed() time.Duration { return time.Since(start) }
func (c *clock) Now() time.Duration {
	return time.Duration(time.Now().UnixNano()) + time.Duration(c.ahead.Load())*time.Millisecond
}

func main() {
	var options struct {
		URL, Project, Issuer, ServerKey, FailMode string
		URLs                                      []string
		MaxStalenessMs, StartupTimeoutMs          int64
		MaxEntries                                int
		CAFile, CertificateFile, KeyFile          string
	}
	options.StartupTimeoutMs = 20_000
	if err := json.Unmarshal([]byte(os.Getenv("PROBE")), &options); err != nil {
		log.Fatal(err)
	}
	output := io.Discard
	if os.Getenv("PROBE_LOG") != "" {
		output = os.Stderr
	}
	config, err := config(options.CAFile, options.CertificateFile, options.KeyFile)
	if err != nil {
		log.Fatal(err)
	}
	urls := options.URLs
	if len(urls) == 0 {
		urls = []string{options.URL}
	}
	now := &clock{}
	begun := time.Now()
	g, err := guard.Connect(context.Background(), guard.Options{
		URLs: urls, Project: options.Project, Issuer: options.Issuer, ServerKey: options.ServerKey,
		MaxStaleness: time.Duration(options.MaxStalenessMs) * time.Millisecond, MaxEntries: options.MaxEntries,
		FailMode:       map[string]guard.FailMode{"introspect": guard.Introspect, "accept_until_expiry": guard.AcceptUntilExpiry}[options.FailMode],
		StartupTimeout: time.Duration(options.StartupTimeoutMs) * time.Millisecond, Clock: now, Log: log.New(output, "", 0),
		TLS: config,
	})
	if err != nil {
		log.Fatal(err)
	}
	ready := time.Since(begun)
	mux := http.NewServeMux()
	mux.HandleFunc("/stats", func(w http.ResponseWriter, r *http.Request) {
		runtime.GC()
		debug.FreeOSMemory()
		stats := g.Stats()
		var staleness *int64
		if stats.Staleness >= 0 {
			ms := stats.Staleness.Milliseconds()
			staleness = &ms
		}
		write(w, map[string]any{
			"stalenessMs": staleness, "entries": stats.Entries, "connections": stats.Connections, "snapshots": stats.Snapshots,
			"withheld": stats.Withheld, "superseded": stats.Superseded, "rssBytes": rss(), "readyMs": ready.Milliseconds(),
		})
	})
	mux.HandleFunc("/clock", func(w http.ResponseWriter, r *http.Request) {
		ahead, _ := strconv.ParseInt(r.URL.Query().Get("ahead_ms"), 10, 64)
		now.ahead.Store(ahead)
		write(w, nil)
	})
	mux.HandleFunc("/block", func(w http.ResponseWriter, r *http.Request) {
		// Goroutines are preempted, so the whole process is stopped: by a child, which also continues it.
		ms, _ := strconv.ParseFloat(r.URL.Query().Get("ms"), 64)
		script := fmt.Sprintf("kill -STOP %d; sleep %f; kill -CONT %d", os.Getpid(), ms/1000, os.Getpid())
		child, err := os.StartProcess("/bin/sh", []string{"sh", "-c", script}, &os.ProcAttr{Sys: &syscall.SysProcAttr{Setpgid: true}})
		if err == nil {
			_, err = child.Wait()
		}
		write(w, err == nil)
	})
	mux.HandleFunc("/refused", func(w http.ResponseWriter, r *http.Request) {
		write(w, map[string]any{"nanos": refused(g, token(r))})
	})
	mux.HandleFunc("/missed", func(w http.ResponseWriter, r *http.Request) {
		var tokens []string
		if err := json.NewDecoder(r.Body).Decode(&tokens); err != nil {
			log.Fatal(err)
		}
		missed := 0
		for _, token := range tokens {
			if !isRevoked(g, token) {
				missed++
			}
		}
		write(w, map[string]any{"missed": missed})
	})
	mux.HandleFunc("/time", func(w http.ResponseWriter, r *http.Request) {
		write(w, map[string]any{"nanos": timed(g, token(r))})
	})
	mux.Handle("/", g.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, guard.PrincipalOf(r.Context()).UserID)
	})))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	// The parent closes it.
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	log.Fatal(http.Serve(listener, mux))
}

// config reads the certificates to trust, and a client certificate.
func config(ca, certificate, key string) (*tls.Config, error) {
	if ca == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	config.RootCAs.AppendCertsFromPEM(pem)
	if certificate != "" {
		pair, err := tls.LoadX509KeyPair(certificate, key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

func token(r *http.Request) string {
	return strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
}

func write(w http.ResponseWriter, value any) { _ = json.NewEncoder(w).Encode(value) }

func isRevoked(g *guard.Guard, token string) bool {
	var refusal *guard.Refusal
	_, err := g.VerifyNow(token)
	return errors.As(err, &refusal) && refusal.Reason == guard.SessionRevoked
}

// refused watches a token until it is refused. Returns the time, in nanoseconds of Unix time.
func refused(g *guard.Guard, token string) *int64 {
	for begun := time.Now(); time.Since(begun) < 30*time.Second; time.Sleep(time.Millisecond) {
		if isRevoked(g, token) {
			nanos := time.Now().UnixNano()
			return &nanos
		}
	}
	return nil
}

// timed returns the time of one verification of a known token, in nanoseconds: the median of rounds.
func timed(g *guard.Guard, token string) float64 {
	const calls = 10_000
	var rounds []float64
	for round := 0; round < 50; round++ {
		begun := time.Now()
		for call := 0; call < calls; call++ {
			// Another text each time, as from the network.
			if _, err := g.VerifyNow(strings.Clone(token)); err != nil {
				return -1
			}
		}
		rounds = append(rounds, float64(time.Since(begun))/calls)
	}
	sort.Float64s(rounds)
	return rounds[25]
}

func rss() int {
	statm, _ := os.ReadFile("/proc/self/statm")
	fields := strings.Fields(string(statm))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.Atoi(fields[1])
	return pages * os.Getpagesize()
}
