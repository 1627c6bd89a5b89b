package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// gitprotocol-v2: a packet is four hexadecimal digits of length and the data; lengths below 4 are special.
const (
	flush         = 0
	delim         = 1
	bandPack      = 1
	bandProgress  = 2
	cloneTimeout  = 10 * time.Minute // of one clone; a hang is an error, never a slow sample
	readBytes     = 256 * 1024
	wantedRef     = " refs/heads/main"
	packSignature = "PACK"
)

var refsRequest = pkt("command=ls-refs\n") + "0001" + pkt("peel\n") + pkt("symrefs\n") +
	pkt("ref-prefix HEAD\n") + pkt("ref-prefix refs/heads/\n") + pkt("ref-prefix refs/tags/\n") + "0000"

func pkt(line string) string { return fmt.Sprintf("%04x%s", len(line)+4, line) }

// packets reads git's packets; the data is valid until the next call.
type packets struct {
	source *bufio.Reader
	buffer []byte
}

func (p *packets) next() (length int, data []byte, err error) {
	if _, err = io.ReadFull(p.source, p.buffer[:4]); err != nil {
		return
	}
	parsed, err := strconv.ParseUint(string(p.buffer[:4]), 16, 16)
	length = int(parsed)
	if err != nil || length < 4 {
		return
	}
	data = p.buffer[:length-4]
	_, err = io.ReadFull(p.source, data)
	return
}

// lines calls use with each packet up to a flush-pkt.
func (p *packets) lines(use func(line string) error) error {
	for {
		length, data, err := p.next()
		if err != nil || length == flush {
			return err
		}
		if bytes.HasPrefix(data, []byte("ERR ")) {
			return fmt.Errorf("the git host says %q", data)
		}
		if err := use(strings.TrimSuffix(string(data), "\n")); err != nil {
			return err
		}
	}
}

// clone is one whole visit: login, ls-refs, a fetch of main whose pack is counted and thrown away, the exit status, disconnect.
func (t *target) clone(depth int64) (done outcome, err error) {
	_, client, err := t.login(time.Now().Add(cloneTimeout))
	if err != nil {
		return done, fmt.Errorf("login: %w", err)
	}
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		return done, fmt.Errorf("channel: %w", err)
	}
	defer session.Close()
	var stderr bytes.Buffer
	session.Stderr = &stderr
	stdin, _ := session.StdinPipe()
	stdout, _ := session.StdoutPipe()
	if err := session.Setenv("GIT_PROTOCOL", "version=2"); err != nil {
		return done, fmt.Errorf("GIT_PROTOCOL: %w", err)
	}
	if err := session.Start(t.command); err != nil {
		return done, fmt.Errorf("command: %w", err)
	}
	done, err = converse(stdin, &packets{bufio.NewReaderSize(stdout, readBytes), make([]byte, 1<<16)}, depth)
	if err == nil {
		err = session.Wait()
	}
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return done, err
}

func converse(stdin io.WriteCloser, host *packets, depth int64) (done outcome, err error) {
	version := ""
	if err = host.lines(func(line string) error { version += line + ";"; return nil }); err != nil {
		return done, fmt.Errorf("the advertisement: %w", err)
	}
	if !strings.HasPrefix(version, "version 2;") {
		return done, fmt.Errorf("the git host does not speak version 2: %q", version)
	}
	if _, err = io.WriteString(stdin, refsRequest); err != nil {
		return done, err
	}
	want := ""
	err = host.lines(func(line string) error {
		if oid, name, _ := strings.Cut(line, " "); " "+name == wantedRef {
			want = oid
		}
		return nil
	})
	if err == nil && want == "" {
		err = fmt.Errorf("there is no%s", wantedRef)
	}
	if err != nil {
		return done, fmt.Errorf("the refs: %w", err)
	}
	request := pkt("command=fetch") + "0001" + pkt("thin-pack") + pkt("no-progress") + pkt("include-tag") + pkt("ofs-delta")
	if depth > 0 {
		request += pkt(fmt.Sprintf("deepen %d", depth))
	}
	request += pkt("want "+want+"\n") + pkt("done\n") + "0000"
	if _, err = io.WriteString(stdin, request); err != nil {
		return done, err
	}
	if err = sections(host); err != nil {
		return done, fmt.Errorf("the answer: %w", err)
	}
	if done, err = pack(host); err != nil {
		return done, fmt.Errorf("the pack: %w", err)
	}
	if _, err = io.WriteString(stdin, "0000"); err != nil {
		return done, err
	}
	if err = stdin.Close(); err == io.EOF { // the host read the flush-pkt, exited, and the channel is closed already
		err = nil
	}
	return done, err
}

// sections reads up to the header of the packfile section.
func sections(host *packets) error {
	for {
		length, data, err := host.next()
		if err != nil {
			return err
		}
		if length == flush {
			return fmt.Errorf("it has no packfile")
		}
		if bytes.HasPrefix(data, []byte("ERR ")) {
			return fmt.Errorf("the git host says %q", data)
		}
		if string(data) == "packfile\n" {
			return nil
		}
	}
}

func pack(host *packets) (done outcome, err error) {
	head := ""
	for {
		length, data, err := host.next()
		if err != nil {
			return done, err
		}
		if length == flush {
			if head != packSignature {
				return done, fmt.Errorf("it begins with %q", head)
			}
			return done, nil
		}
		if length <= delim || len(data) == 0 || data[0] > bandProgress || data[0] < bandPack {
			return done, fmt.Errorf("a packet of length %d: %.100q", length, data)
		}
		if data[0] == bandPack && len(data) > 1 {
			if done.bytes == 0 {
				done.first = time.Now()
			}
			if len(head) < len(packSignature) {
				head += string(data[1:min(len(data), 1+len(packSignature)-len(head))])
			}
			done.bytes += int64(len(data) - 1)
		}
	}
}
