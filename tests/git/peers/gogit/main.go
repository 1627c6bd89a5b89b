// One session of go-git: main URL FOLDER DEPTH
package main

import (
	"log"
	"os"
	"strconv"

	git "github.com/go-git/go-git/v6"
)

func main() {
	depth, err := strconv.Atoi(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	if _, err := git.PlainClone(os.Args[2], &git.CloneOptions{URL: os.Args[1], Depth: depth}); err != nil {
		log.Fatal(err)
	}
}
