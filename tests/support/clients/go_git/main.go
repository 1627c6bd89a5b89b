// Clone, push and list by go-git: go_git KEY clone URL FOLDER, in a working copy go_git KEY push REMOTE BRANCH, or go_git KEY list URL TIMES
package main

import (
	"fmt"
	"os"
	"strconv"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing/transport/ssh"
	"github.com/go-git/go-git/v5/storage/memory"
)

func run(key, action, first, second string) error {
	// the host key must be the one in ~/.ssh/known_hosts, which go-git looks at by itself
	auth, err := ssh.NewPublicKeysFromFile("git", key, "")
	if err != nil {
		return err
	}
	switch action {
	case "clone":
		_, err := git.PlainClone(second, false, &git.CloneOptions{URL: first, Auth: auth})
		return err
	case "push":
		repository, err := git.PlainOpen(".")
		if err != nil {
			return err
		}
		ref := config.RefSpec("refs/heads/" + second + ":refs/heads/" + second)
		return repository.Push(&git.PushOptions{RemoteName: first, Auth: auth, RefSpecs: []config.RefSpec{ref}})
	case "list":
		times, err := strconv.Atoi(second)
		if err != nil {
			return err
		}
		remote := git.NewRemote(memory.NewStorage(), &config.RemoteConfig{Name: "origin", URLs: []string{first}})
		for range times {
			if _, err := remote.List(&git.ListOptions{Auth: auth}); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("unknown action %q", action)
}

func main() {
	if len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: go_git KEY clone|push|list ARGUMENT ARGUMENT")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
