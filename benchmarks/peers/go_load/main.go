// Command go_load is the load generator of the benchmark suite: many SSH clients in one process that cost
// less than the server under test. "sessions" is a closed loop (each client logs in, runs one command,
// checks what came back, leaves, and starts again); "idle" opens authenticated connections and holds them
// until its standard input ends; "clones" is a closed loop of fetches by protocol version 2 that throw the
// pack away. It prints one JSON object a phase.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	sessionTimeout = 60 * time.Second // a hang is an error, never a slow sample
	errorsKept     = 5
)

type target struct {
	address, command, expect string
	config                   *ssh.ClientConfig
}

type report struct {
	Elapsed    float64   `json:"elapsed"`         // seconds from the first start to the last end
	Latencies  []float64 `json:"latencies"`       // seconds, one for each session that ended well
	First      []float64 `json:"first,omitempty"` // clones: seconds to the first byte of the pack, in the same order
	Bytes      int64     `json:"bytes"`           // clones: of all packs
	Failures   int       `json:"failures"`        // sessions that did not
	Errors     []string  `json:"errors"`          // the first few of their messages
	CPUSeconds float64   `json:"cpu_seconds"`     // of this process
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("go_load: ")
	if len(os.Args) < 2 || (os.Args[1] != "sessions" && os.Args[1] != "idle" && os.Args[1] != "clones") {
		log.Fatal("usage: go_load sessions|clones|idle -address HOST:PORT -user NAME -key FILE [options]")
	}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	address := flags.String("address", "", "host:port of the server")
	user := flags.String("user", "git", "user name")
	key := flags.String("key", "", "private key file")
	hostKey := flags.String("host-key", "", "public host key file; without it any host key is taken")
	kex := flags.String("kex", "curve25519-sha256", "key exchanges offered, comma separated")
	clients := flags.Int("clients", 1, "sessions: clients at once; idle: connections held")
	seconds := flags.Float64("seconds", 0, "sessions: start none after this long")
	count := flags.Int64("count", 0, "sessions: start at most this many (0: no limit)")
	command := flags.String("command", "", "sessions: the command to run")
	expect := flags.String("expect", "", "sessions: its standard output")
	parallel := flags.Int("parallel", 16, "idle: logins at once")
	depth := flags.Int64("depth", 0, "clones: how many commits of history (0: all)")
	step := flags.Int64("step", 0, "clones: how much deeper each one is than the one before")
	_ = flags.Parse(os.Args[2:])

	config, err := clientConfig(*user, *key, *hostKey, strings.Split(*kex, ","))
	if err != nil {
		log.Fatal(err)
	}
	t := &target{address: *address, command: *command, expect: *expect, config: config}
	if os.Args[1] == "idle" {
		t.hold(*clients, *parallel)
		return
	}
	if *seconds <= 0 && *count <= 0 {
		log.Fatal(os.Args[1] + ": neither -seconds nor -count bounds the load")
	}
	visit := t.session
	if os.Args[1] == "clones" {
		visit = func(number int64) (outcome, error) { return t.clone(*depth + number**step) }
	}
	print(load(visit, *clients, *count, time.Duration(*seconds*float64(time.Second))))
}

func clientConfig(user, key, hostKey string, kex []string) (*ssh.ClientConfig, error) {
	data, err := os.ReadFile(key)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	config := &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: ssh.InsecureIgnoreHostKey(), // a --peer whose key the suite does not know
	}
	config.KeyExchanges = kex
	if hostKey != "" {
		data, err := os.ReadFile(hostKey)
		if err != nil {
			return nil, err
		}
		public, _, _, _, err := ssh.ParseAuthorizedKey(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", hostKey, err)
		}
		config.HostKeyCallback = ssh.FixedHostKey(public)
		config.HostKeyAlgorithms = []string{public.Type()}
	}
	return config, nil
}

// login dials and authenticates.
func (t *target) login(deadline time.Time) (net.Conn, *ssh.Client, error) {
	conn, err := net.DialTimeout("tcp", t.address, time.Until(deadline))
	if err != nil {
		return nil, nil, err
	}
	_ = conn.SetDeadline(deadline)
	sshConn, channels, requests, err := ssh.NewClientConn(conn, t.address, t.config)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, ssh.NewClient(sshConn, channels, requests), nil
}

// outcome is what a visit that ended well is counted by.
type outcome struct {
	first time.Time // the first byte of a pack
	bytes int64     // of the pack
}

// session is one whole visit: login, one command to its exit status, disconnect.
func (t *target) session(int64) (outcome, error) {
	return outcome{}, t.run()
}

func (t *target) run() error {
	_, client, err := t.login(time.Now().Add(sessionTimeout))
	if err != nil {
		return fmt.Errorf("login: %w", err)
	}
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		return fmt.Errorf("channel: %w", err)
	}
	defer session.Close()
	var stdout, stderr bytes.Buffer
	session.Stdout, session.Stderr = &stdout, &stderr
	if err := session.Run(t.command); err != nil {
		return fmt.Errorf("command: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	if stdout.String() != t.expect {
		return fmt.Errorf("command wrote %q instead of %q", stdout.String(), t.expect)
	}
	return nil
}

// load runs the closed loop: as many visits at once as there are clients, a new one only after the last ended.
func load(visit func(number int64) (outcome, error), clients int, count int64, duration time.Duration) report {
	var started atomic.Int64
	var lock sync.Mutex
	var all sync.WaitGroup
	result := report{Latencies: []float64{}, First: []float64{}, Errors: []string{}}
	begin := time.Now()
	for range clients {
		all.Add(1)
		go func() {
			defer all.Done()
			for duration <= 0 || time.Since(begin) < duration {
				number := started.Add(1)
				if count > 0 && number > count {
					return
				}
				start := time.Now()
				done, err := visit(number)
				took := time.Since(start).Seconds()
				lock.Lock()
				if err == nil {
					result.Latencies = append(result.Latencies, took)
					if !done.first.IsZero() {
						result.First = append(result.First, done.first.Sub(start).Seconds())
						result.Bytes += done.bytes
					}
				} else {
					result.Failures++
					if len(result.Errors) < errorsKept {
						result.Errors = append(result.Errors, err.Error())
					}
				}
				lock.Unlock()
				if err != nil {
					time.Sleep(10 * time.Millisecond) // a server that refuses is not hammered
				}
			}
		}()
	}
	all.Wait()
	result.Elapsed = time.Since(begin).Seconds()
	result.CPUSeconds = cpuSeconds()
	return result
}

// hold opens the connections, says so, and keeps them until standard input ends or one of them breaks.
func (t *target) hold(connections, parallel int) {
	begin := time.Now()
	turns := make(chan struct{}, parallel)
	open := make([]*ssh.Client, connections)
	failures := make(chan error, connections)
	var all sync.WaitGroup
	for i := range connections {
		turns <- struct{}{}
		all.Add(1)
		go func() {
			defer all.Done()
			defer func() { <-turns }()
			conn, client, err := t.login(time.Now().Add(sessionTimeout))
			if err != nil {
				failures <- fmt.Errorf("login: %w", err)
				return
			}
			_ = conn.SetDeadline(time.Time{})
			open[i] = client
		}()
	}
	all.Wait()
	result := report{Latencies: []float64{}, Errors: []string{}, Elapsed: time.Since(begin).Seconds(), Failures: len(failures)}
	for range min(len(failures), errorsKept) {
		result.Errors = append(result.Errors, (<-failures).Error())
	}
	print(result)
	_, _ = os.Stdin.Read(make([]byte, 1)) // until the suite closes it
	lost := 0
	for _, client := range open {
		if client == nil {
			continue
		}
		if _, _, err := client.SendRequest("keepalive@openssh.com", true, nil); err != nil {
			lost++
		}
		client.Close()
	}
	final := report{Latencies: []float64{}, Errors: []string{}, Failures: lost, CPUSeconds: cpuSeconds()}
	if lost > 0 {
		final.Errors = append(final.Errors, "connections were closed while idle")
	}
	print(final)
}

func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		log.Fatal(err)
	}
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return seconds(usage.Utime) + seconds(usage.Stime)
}

func print(result report) {
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		log.Fatal(err)
	}
}
