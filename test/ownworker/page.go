// Package ownworker follows docs/your-own-worker.md in a copy of the repository.
package ownworker

import (
	"fmt"
	"strings"
)

// block is a fenced block of the page. Its first line says what to do with it.
type block struct {
	line     int // of its first line in the page
	language string
	text     string
}

// first returns the first line, without the comment's mark.
func (b block) first() string {
	line, _, _ := strings.Cut(b.text, "\n")
	for _, mark := range []string{"# ", "// ", "--- "} {
		if rest, ok := strings.CutPrefix(line, mark); ok {
			return rest
		}
	}
	return ""
}

// blocks returns the fenced blocks of a page in order.
func blocks(page string) (all []block, err error) {
	var b *block
	for i, line := range strings.Split(page, "\n") {
		rest, isFence := strings.CutPrefix(line, "```")
		switch {
		case isFence && b == nil:
			b = &block{line: i + 2, language: rest}
		case isFence:
			all, b = append(all, *b), nil
		case b != nil:
			b.text += line + "\n"
		}
	}
	if b != nil {
		return nil, fmt.Errorf("the block of line %d does not end", b.line)
	}
	return all, nil
}

// patch applies a diff block, whose hunks are separated by @@ and have no line numbers:
// the lines before the change must be in the file exactly once.
func patch(file string, b block) (string, error) {
	_, hunks, _ := strings.Cut(b.text, "\n")
	for hunk := range strings.SplitSeq(hunks, "@@\n") {
		var before, after strings.Builder
		for line := range strings.Lines(hunk) {
			switch line[0] {
			case '-':
				before.WriteString(line[1:])
			case '+':
				after.WriteString(line[1:])
			case ' ':
				before.WriteString(line[1:])
				after.WriteString(line[1:])
			default:
				return "", fmt.Errorf("line %q begins with neither a blank nor + nor -", line)
			}
		}
		if n := strings.Count(file, before.String()); n != 1 {
			return "", fmt.Errorf("these lines are there %d times, not once:\n%s", n, before.String())
		}
		file = strings.Replace(file, before.String(), after.String(), 1)
	}
	return file, nil
}
