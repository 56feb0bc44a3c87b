#include "nearest.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

static int min(int a, int b)
{
	return a < b ? a : b;
}

/* Optimal string alignment, with three rows of the table. */
int edit_distance(const char *a, const char *b)
{
	int rows[3][NAME_LENGTH_MAX + 1];
	int *before = rows[0], *above = rows[1], *row = rows[2], *free_row;
	int a_length = (int)strlen(a), b_length = (int)strlen(b);

	for (int j = 0; j <= b_length; j++)
		row[j] = j;
	for (int i = 1; i <= a_length; i++) {
		free_row = before;
		before = above;
		above = row;
		row = free_row;
		row[0] = i;
		for (int j = 1; j <= b_length; j++) {
			int x = tolower((unsigned char)a[i - 1]), y = tolower((unsigned char)b[j - 1]);

			row[j] = min(min(above[j], row[j - 1]) + 1, above[j - 1] + (x != y));
			if (i > 1 && j > 1 && x == tolower((unsigned char)b[j - 2]) &&
			    y == tolower((unsigned char)a[i - 2]))
				row[j] = min(row[j], before[j - 2] + 1);
		}
	}
	return row[b_length];
}

static int begins_alike(const char *a, const char *b)
{
	size_t length = strlen(a) < strlen(b) ? strlen(a) : strlen(b);

	return length >= 3 && strncasecmp(a, b, length) == 0;
}

void nearest_offer(struct nearest *nearest, const char *wanted, const char *name)
{
	int limit = ((int)strlen(wanted) + 2) / 3;
	int distance = edit_distance(wanted, name);
	int at;

	if (distance > limit) {
		if (!begins_alike(wanted, name))
			return;
		distance = limit + 1;
	}
	for (at = 0; at < nearest->count; at++)
		if (distance < nearest->distance[at] ||
		    (distance == nearest->distance[at] && strcmp(name, nearest->names[at]) < 0))
			break;
	/* An image may be there in two kinds. */
	if (at > 0 && strcmp(name, nearest->names[at - 1]) == 0)
		return;
	if (at == NEAREST_MAX)
		return;
	if (nearest->count < NEAREST_MAX)
		nearest->count++;
	for (int i = nearest->count - 1; i > at; i--) {
		nearest->distance[i] = nearest->distance[i - 1];
		memcpy(nearest->names[i], nearest->names[i - 1], sizeof(nearest->names[i]));
	}
	nearest->distance[at] = distance;
	snprintf(nearest->names[at], sizeof(nearest->names[at]), "%s", name);
}

void nearest_hint(const struct nearest *nearest, char hint[WHY_SIZE])
{
	const char *between = "";
	int used = 0;

	*hint = '\0';
	for (int i = 0; i < nearest->count; i++) {
		used += snprintf(hint + used, (size_t)(WHY_SIZE - used), "%s%s", i == 0 ? "; did you mean " : between,
				 nearest->names[i]);
		between = i + 2 == nearest->count ? " or " : ", ";
	}
	if (nearest->count > 0)
		snprintf(hint + used, (size_t)(WHY_SIZE - used), "?");
}
