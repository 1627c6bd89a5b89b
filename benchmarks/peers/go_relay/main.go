// Command go_relay is the Go contender of the benchmark suite: an SSH relay on golang.org/x/crypto/ssh
// that a fair-minded Go programmer would write. It logs a client in by its public key, dials the
// upstream once for each session, carries stdin, stdout and stderr with backpressure and half-close,
// and hands on the exit status or signal as the upstream sent it. Of the environment it carries
// GIT_PROTOCOL. It keeps no pool: that is the difference the benchmark is about.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	copyBytes      = 256 << 10 // one copy takes up to eight SSH packets of 32 KiB; reading sockets ahead as well did not help
	loginGrace     = 30 * time.Second
	connectTimeout = 10 * time.Second
)

type relay struct {
	server   *ssh.ServerConfig
	client   *ssh.ClientConfig
	upstream string
	buffers  sync.Pool
}

func main() {
	log.SetFlags(0)
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on")
	hostKey := flag.String("host-key", "", "private host key")
	authorized := flag.String("authorized-keys", "", "public keys that may log in, OpenSSH format")
	upstream := flag.String("upstream", "", "host:port of the git host")
	user := flag.String("user", "git", "user name at the git host")
	key := flag.String("key", "", "private key for the git host")
	upstreamHostKey := flag.String("upstream-host-key", "", "public host key of the git host, OpenSSH format")
	flag.Parse()

	hostSigner, err := readSigner(*hostKey)
	if err != nil {
		log.Fatalf("host key: %v", err)
	}
	upstreamSigner, err := readSigner(*key)
	if err != nil {
		log.Fatalf("upstream key: %v", err)
	}
	allowed, err := readPublicKeys(*authorized)
	if err != nil {
		log.Fatalf("authorized keys: %v", err)
	}
	pinned, err := readPublicKeys(*upstreamHostKey)
	if err != nil || len(pinned) != 1 {
		log.Fatalf("upstream host key: %d keys, %v", len(pinned), err)
	}

	r := &relay{
		upstream: *upstream,
		server: &ssh.ServerConfig{
			PublicKeyCallback: func(_ ssh.ConnMetadata, offered ssh.PublicKey) (*ssh.Permissions, error) {
				for _, one := range allowed {
					if bytes.Equal(one.Marshal(), offered.Marshal()) {
						return nil, nil
					}
				}
				return nil, errors.New("unknown key")
			},
		},
		client: &ssh.ClientConfig{
			User:              *user,
			Auth:              []ssh.AuthMethod{ssh.PublicKeys(upstreamSigner)},
			HostKeyCallback:   ssh.FixedHostKey(pinned[0]),
			HostKeyAlgorithms: []string{pinned[0].Type()},
			Timeout:           connectTimeout,
		},
		buffers: sync.Pool{New: func() any { b := make([]byte, copyBytes); return &b }},
	}
	r.server.AddHostKey(hostSigner)

	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatalf("listen: %v", err)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	go func() { <-stop; os.Exit(0) }()
	log.Printf("listening on %s", listener.Addr())
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Printf("accept: %v", err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		go r.serveConnection(conn)
	}
}

// serveConnection does the handshake within the login grace time and answers channels until the client leaves.
func (r *relay) serveConnection(conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(loginGrace))
	client, channels, requests, err := ssh.NewServerConn(conn, r.server)
	if err != nil {
		return // a scanner, or a client without a key that is known here
	}
	defer client.Close()
	_ = conn.SetDeadline(time.Time{})
	go ssh.DiscardRequests(requests)
	for offer := range channels {
		if offer.ChannelType() != "session" {
			_ = offer.Reject(ssh.UnknownChannelType, "only sessions are served here")
			continue
		}
		channel, requests, err := offer.Accept()
		if err != nil {
			return
		}
		go r.serveSession(channel, requests)
	}
}

// serveSession waits for the exec request (RFC 4254, 6.5) and carries that one command.
func (r *relay) serveSession(client ssh.Channel, requests <-chan *ssh.Request) {
	protocol := ""
	started := false
	for request := range requests {
		ok := false
		switch request.Type {
		case "env":
			var env struct{ Name, Value string }
			if ssh.Unmarshal(request.Payload, &env) == nil && env.Name == "GIT_PROTOCOL" && !started {
				protocol, ok = env.Value, true
			}
		case "exec":
			var exec struct{ Command string }
			if ssh.Unmarshal(request.Payload, &exec) == nil && !started {
				started, ok = true, true
				go r.carry(client, exec.Command, protocol)
			}
		}
		if request.WantReply {
			_ = request.Reply(ok, nil)
		}
	}
	if !started {
		_ = client.Close()
	}
}

func (r *relay) fail(client ssh.Channel, err error) {
	fmt.Fprintf(client.Stderr(), "go_relay: %v\n", err)
	_, _ = client.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{255}))
}

// carry dials the upstream, runs the command there and splices until both streams have ended.
func (r *relay) carry(client ssh.Channel, command, protocol string) {
	defer client.Close()
	conn, err := net.DialTimeout("tcp", r.upstream, connectTimeout)
	if err != nil {
		r.fail(client, err)
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(connectTimeout))
	sshConn, channels, globals, err := ssh.NewClientConn(conn, r.upstream, r.client)
	if err != nil {
		r.fail(client, err)
		return
	}
	_ = conn.SetDeadline(time.Time{})
	upstreamConn := ssh.NewClient(sshConn, channels, globals)
	defer upstreamConn.Close()
	upstream, requests, err := upstreamConn.OpenChannel("session", nil)
	if err != nil {
		r.fail(client, err)
		return
	}
	defer upstream.Close()
	if protocol != "" { // no reply wanted: costs no round trip, and a refusal is not an error
		_, _ = upstream.SendRequest("env", false, ssh.Marshal(struct{ Name, Value string }{"GIT_PROTOCOL", protocol}))
	}
	accepted, err := upstream.SendRequest("exec", true, ssh.Marshal(struct{ Command string }{command}))
	if err != nil || !accepted {
		r.fail(client, fmt.Errorf("exec refused (%v)", err))
		return
	}

	go func() { // half-close: the command reads its end of file and goes on writing
		if r.copy(upstream, client) == nil {
			_ = upstream.CloseWrite()
		}
	}()
	var outputs sync.WaitGroup
	for _, stream := range []struct {
		to   io.Writer
		from io.Reader
	}{{client, upstream}, {client.Stderr(), upstream.Stderr()}} {
		outputs.Add(1)
		go func() {
			defer outputs.Done()
			if r.copy(stream.to, stream.from) != nil {
				_ = upstreamConn.Close() // nobody reads any more: do not leave the command waiting
			}
		}()
	}

	var ending *ssh.Request
	for request := range requests { // ends when the upstream closes the channel
		if request.Type == "exit-status" || request.Type == "exit-signal" {
			ending = request
		}
		if request.WantReply {
			_ = request.Reply(false, nil)
		}
	}
	outputs.Wait()
	_ = client.CloseWrite()
	if ending == nil {
		r.fail(client, errors.New("the upstream ended without an exit status"))
		return
	}
	_, _ = client.SendRequest(ending.Type, false, ending.Payload)
}

// copy carries one direction to its end of file.
func (r *relay) copy(to io.Writer, from io.Reader) error {
	buffer := r.buffers.Get().(*[]byte)
	defer r.buffers.Put(buffer)
	_, err := io.CopyBuffer(to, from, *buffer)
	return err
}

func readSigner(path string) (ssh.Signer, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return ssh.ParsePrivateKey(data)
}

func readPublicKeys(path string) ([]ssh.PublicKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var keys []ssh.PublicKey
	for len(bytes.TrimSpace(data)) > 0 {
		key, _, _, rest, err := ssh.ParseAuthorizedKey(data)
		if err != nil {
			return nil, err
		}
		keys, data = append(keys, key), rest
	}
	return keys, nil
}
