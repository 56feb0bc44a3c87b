-- Jobs go to their data: turn --datasets into a preference for the nodes that have the datasets cached.
--
-- For slurmctld's job_submit/lua (JobSubmitPlugins=lua). A site without a job_submit.lua of its own links this file to
-- job_submit.lua beside slurm.conf; any other loads it and calls it from its own two functions:
--
--     local scratch_slurm = dofile("/usr/local/lib/scratch-slurm/scratch_slurm.lua")
--     function slurm_job_submit(job_desc, part_list, submit_uid)
--         scratch_slurm.submit(job_desc)
--         ...
--     function slurm_job_modify(job_desc, job_rec, part_list, modify_uid)
--         scratch_slurm.modify(job_desc, job_rec)
--         ...
--
-- It needs SchedulerParameters=ignore_prefer_validation in slurm.conf: without it Slurm refuses a job that prefers a
-- feature that no node has at that moment. Where that is missing it sets no preference, and says so once in
-- slurmctld's log.
--
-- A preference never refuses a job and never makes it wait: --prefer is dropped when it cannot be met at once. It
-- replaces --constraint while it can be met, so it repeats it. Everything that comes from the job is a stranger's text:
-- only expressions that Slurm is known to take are made of it.
--
-- This runs in slurmctld, under its locks: no program is started, and nothing is read after the start but the job.
-- Lua 5.1 to 5.4: Slurm takes whichever it was built with.

local M = {}

-- As slurm.feature_prefix in scratch-slurm's configuration.
M.feature_prefix = "ds:"

-- The administrator's word that within each partition every node can run what any other can. Only needed, and only of
-- use, where `can_hold` is true; from Slurm 24.11.4 on.
M.nodes_are_alike = false

local NAME = "^[A-Za-z0-9][A-Za-z0-9._@+-]*$"
local MAX_DATASETS = 64
local MAX_NAME = 64
local MAX_LIST = MAX_DATASETS * (MAX_NAME + 1)
local MAX_VARIABLES = 256
-- Slurm refuses a job whose constraint or preference is longer: _test_job_desc_fields() in job_mgr.c.
local MAX_EXPRESSION = 1024
-- What is a name in a constraint: neither an operator nor a blank or control character.
local WORD = "^[^%s%c%[%]()|&*,!]+$"

-- slurm.conf, as far as one line of it matters.

local function directory_of(path)
    return string.match(path, "^(.*)/[^/]*$") or "."
end

-- Call `take` with every key and value of a slurm.conf and what it includes. Returns whether the file could be read.
local function read_conf(path, take, depth)
    local file = io.open(path, "r")
    local text = file and file:read("*a")
    if file then
        file:close()
    end
    if not text then
        return false -- io.open() opens a directory too
    end
    text = string.gsub(text, "\\\r?\n", "") -- a line goes on after a backslash
    for line in string.gmatch(text, "[^\r\n]+") do
        line = string.gsub(line, "#.*$", "")
        local included = string.match(line, "^%s*[Ii][Nn][Cc][Ll][Uu][Dd][Ee]%s+(%S+)%s*$")
        local key, value = string.match(line, "^%s*(%w+)%s*=%s*(.-)%s*$")
        if included and depth > 0 then
            local absolute = string.sub(included, 1, 1) == "/"
            read_conf(absolute and included or directory_of(path) .. "/" .. included, take, depth - 1)
        elseif key then
            take(string.lower(key), value)
        end
    end
    return true
end

-- Tell whether the first slurm.conf of `paths` that can be read turns the validation of preferences off.
function M.read_validation_is_off(paths)
    local off = false
    for index = 1, #paths do
        local could_read = read_conf(paths[index], function(key, value)
            if key == "schedulerparameters" then
                -- The last line counts, and any part of it, as in Slurm's own reading.
                off = string.find(string.lower(value), "ignore_prefer_validation", 1, true) ~= nil
            end
        end, 5)
        if could_read then
            return off
        end
    end
    return false
end

local function conf_paths()
    local paths = { os.getenv("SLURM_CONF") }
    local script = debug and string.match(debug.getinfo(1, "S").source, "^@(.*)$")
    if script then
        paths[#paths + 1] = directory_of(script) .. "/slurm.conf"
    end
    for _, directory in ipairs({ "/etc/slurm", "/usr/local/etc", "/etc/slurm-llnl" }) do
        paths[#paths + 1] = directory .. "/slurm.conf"
    end
    return paths
end

-- Messages.

local function log(level, format, ...)
    local write = slurm and slurm["log_" .. level]
    if write then
        pcall(write, format, ...)
    end
end

-- The job's expressions.

-- The request in the job control environment ("NAME=value", from 0 on): the dataset list, and whether it is required.
local function request_of(job_desc)
    local variables = job_desc.spank_job_env
    if type(variables) ~= "table" then
        return nil, false
    end
    local datasets, required = nil, false
    for index = 0, MAX_VARIABLES - 1 do
        local variable = variables[index]
        if type(variable) == "string" then
            datasets = datasets or string.match(variable, "^DATASETS=(.*)$")
            required = required or variable == "DATASETS_REQUIRED=1"
        end
    end
    return datasets, required
end

-- Make the features of a dataset list, each once; nil when the list is not what the plugin would have sent.
function M.features_of(datasets)
    if #datasets > MAX_LIST then
        return nil
    end
    local features, seen = {}, {}
    for name in string.gmatch(datasets .. ",", "([^,]*),") do
        if #name > MAX_NAME or not string.match(name, NAME) then
            return nil
        end
        if not seen[name] then
            seen[name] = true
            features[#features + 1] = M.feature_prefix .. name
        end
    end
    return #features <= MAX_DATASETS and features or nil
end

-- Tell whether all parts of `text` between separators satisfy `accept`.
local function all_parts(text, separator, accept)
    for part in string.gmatch(text .. separator, "([^" .. separator .. "]*)" .. separator) do
        if not accept(part) then
            return false
        end
    end
    return true
end

local function is_word(text)
    return string.match(text, WORD) ~= nil
end

-- (a|b) or (a&b), of words: Slurm has no parentheses in parentheses.
local function is_group(text)
    local inner = string.match(text, "^%(([^()]*)%)$")
    return inner ~= nil and (all_parts(inner, "|", is_word) or all_parts(inner, "&", is_word))
end

-- Rewrite a constraint so that `&feature` can follow it: words and groups joined by &, or words joined by |. nil for
-- anything else: counts, brackets, & beside | without parentheses, which nobody can extend without changing it.
local function extensible(constraint)
    if all_parts(constraint, "|", is_word) then
        local one = not string.find(constraint, "|", 1, true)
        return one and constraint or "(" .. constraint .. ")"
    end
    if string.find(constraint, "%c") then
        return nil
    end
    -- A group counts as one sign that no word has, so that the & in it is none.
    local flat = string.gsub(constraint, "%b()", function(group)
        return is_group(group) and "\1" or "()"
    end)
    local function is_term(text)
        return text == "\1" or is_word(text)
    end
    return all_parts(flat, "&", is_term) and constraint or nil
end

-- Join the user's own constraint with features that must all be there; the first ones where Slurm's limit on the
-- length does not allow all. Returns the expression and how many features it has, or nil and why not.
function M.join(constraint, features)
    local joined = ""
    if constraint ~= nil and constraint ~= "" then
        joined = #constraint <= MAX_EXPRESSION and extensible(constraint) or nil
        if not joined then
            return nil, "the job's constraint is not one that can be added to"
        end
    end
    for index, feature in ipairs(features) do
        local longer = joined == "" and feature or joined .. "&" .. feature
        if #longer > MAX_EXPRESSION then
            if index == 1 then
                return nil, "the job's constraint is too long to be added to"
            end
            return joined, index - 1
        end
        joined = longer
    end
    return joined, #features
end

-- What is done with a job.

-- Takes a job's preference away. Slurm takes an empty one for no change; no dataset has this name, so no node does.
local function nowhere()
    return M.feature_prefix .. "-"
end

-- Seen on 22.05.8: an array whose preference no node has waits (BadConstraints) until one has it, where any other job
-- falls back at once. So no preference for arrays; a constraint works for them as for others.
local function is_array(job)
    return (job.array_inx ~= nil and job.array_inx ~= "") or (tonumber(job.array_job_id) or 0) > 0
end

-- Slurm 24.11 and later tries the preference of a job first, and holds the job for ever (BadConstraints, priority 0) when
-- nodes have the features but could never run it: too few nodes, too small ones, others than it names. Seen on 24.11.5
-- and 26.05.5; schedule() in job_scheduler.c. When no node at all has the features it goes on
-- without them, from 24.11.4 on. A script is not told the release, but this error came with 24.11.
local function can_hold()
    return slurm ~= nil and slurm.ESLURM_AUTH_EXPIRED ~= nil
end

-- Slurm's numbers that are not set are its largest ones.
local function is_number(value)
    return type(value) == "number" and value < 0xfffffff0
end

local function is_text(value)
    return type(value) == "string" and value ~= ""
end

-- Tell whether one node is enough for a job; of one that leaves it to Slurm that is not certain.
local function is_on_one_node(job)
    local function at_most_one(number)
        return not is_number(number) or number <= 1
    end
    return job.max_nodes == 1
        or at_most_one(job.min_nodes) and at_most_one(job.num_tasks) and not is_text(job.tres_per_job)
end

local has_said_so = false

local function prefer(job_desc, features)
    if is_array(job_desc) then
        return nil, "the job is an array"
    end
    -- There is nothing to choose, and Slurm 22.05 lets the job wait for its next round of backfill.
    if is_text(job_desc.req_nodes) then
        return nil, "the job names its nodes"
    end
    if can_hold() and not M.nodes_are_alike then
        -- Not said when the script is loaded: the site's own sets it after that.
        if not has_said_so then
            log("info", "scratch-slurm: job_submit: no job will prefer the nodes that have its datasets: this Slurm may "
                .. "hold it for that; if nodes are alike, set nodes_are_alike")
        end
        has_said_so = true
        return nil, "this Slurm may hold the job for it"
    end
    if can_hold() and not is_on_one_node(job_desc) then
        return nil, "this Slurm may hold the job for it, unless it is on one node"
    end
    if job_desc.prefer and job_desc.prefer ~= "" then
        return nil, "the job has a preference of its own"
    end
    if not M.validation_is_off then
        return nil, "SchedulerParameters lacks ignore_prefer_validation"
    end
    local joined, count = M.join(job_desc.features, features)
    if not joined then
        return nil, count
    end
    job_desc.prefer = joined
    return joined
end

-- The constraint binds; a preference of the user's, which would replace it, is bound too.
local function require_all(job_desc, features)
    local joined, count = M.join(job_desc.features, features)
    if not joined then
        log("user", "scratch-slurm: --datasets-required does nothing: %s", count)
        return nil, count
    end
    if job_desc.prefer and job_desc.prefer ~= "" then
        local preferred, preferred_count = M.join(job_desc.prefer, features)
        if not preferred or preferred_count < count or not M.validation_is_off then
            log("user", "scratch-slurm: --prefer does nothing: it cannot be joined with --datasets-required")
            preferred = ""
        end
        job_desc.prefer = preferred
    end
    job_desc.features = joined
    local few = count < #features and string.format(" (%d of %d: no room for more)", count, #features) or ""
    log("user", "scratch-slurm: --datasets-required: the job needs nodes with %s%s",
        table.concat(features, ", ", 1, math.min(count, 5)) .. (count > 5 and ", ..." or ""), few)
    return joined
end

local function submit(job_desc)
    local datasets, required = request_of(job_desc)
    if not datasets then
        return nil, "no --datasets"
    end
    local features = M.features_of(datasets)
    if not features then
        return nil, "the list of datasets is not one"
    end
    return (required and require_all or prefer)(job_desc, features)
end

-- The preference repeats the constraint: when `scontrol update job` changes this, that follows, or the job would run on
-- what the old constraint allows. Slurm 22.05 does not tell a script what the job prefers: there a preference of the
-- user's own is replaced too, which would not have obeyed the new constraint either.
local function follow(job_desc, job_rec)
    local constraint, preferred = job_desc.features, job_rec.prefer
    if not constraint or (job_desc.prefer and job_desc.prefer ~= "") then
        return nil, "the constraint alone is not changed"
    end
    local datasets, required = request_of(job_rec)
    local features = datasets and not required and not is_array(job_rec) and M.features_of(datasets)
    if not features or not M.validation_is_off then
        return nil, "the job has no preference of ours"
    end
    if preferred and preferred ~= "" and preferred ~= M.join(job_rec.features, features) then
        return nil, "the job has a preference of its own"
    end
    local joined, count = M.join(constraint, features)
    job_desc.prefer = joined or nowhere()
    return joined, count
end

-- Where Slurm can hold a job for its preference, one that is given another shape loses it: a script is told neither what
-- it prefers nor all of its old shape. A job that runs cannot be changed so.
local function forget(job_desc, job_rec)
    local is_reshaped = job_desc.features ~= nil or is_text(job_desc.req_nodes) or is_text(job_desc.tres_per_job)
        or is_number(job_desc.min_nodes) or is_number(job_desc.max_nodes) or is_number(job_desc.num_tasks)
    if not M.nodes_are_alike or not is_reshaped or is_text(job_desc.prefer) then
        return nil, "it has none of ours, or keeps it"
    end
    local datasets, required = request_of(job_rec)
    if not datasets or required or is_array(job_rec) or (tonumber(job_rec.job_state) or 0) % 256 ~= 0 then
        return nil, "the job has no preference of ours"
    end
    job_desc.prefer = nowhere()
    return job_desc.prefer
end

local function modify(job_desc, job_rec)
    return (can_hold() and forget or follow)(job_desc, job_rec)
end

-- Run `act`; whatever goes wrong in it does not refuse the job. Returns what it set, or nil and why it set nothing.
local function guarded(act, ...)
    local ran, result, why = pcall(act, ...)
    if not ran then
        log("error", "scratch-slurm: job_submit: cannot set a preference: %s", tostring(result))
        return nil, tostring(result)
    end
    if not result then
        log("debug", "scratch-slurm: job_submit: no preference: %s", tostring(why))
    end
    return result, why
end

function M.submit(job_desc)
    return guarded(submit, job_desc)
end

function M.modify(job_desc, job_rec)
    return guarded(modify, job_desc, job_rec)
end

-- Read once, here: slurmctld has read the same lines just now. Later the file can say what slurmctld does not do yet.
do
    local ran, off = pcall(function()
        return M.read_validation_is_off(conf_paths())
    end)
    M.validation_is_off = ran and off
    if not M.validation_is_off then
        log("error", "scratch-slurm: job_submit: no job will prefer the nodes that have its datasets: slurm.conf lacks "
            .. "SchedulerParameters=ignore_prefer_validation")
    end
end

-- A script that loads this one may have made its own before.
slurm_job_submit = slurm_job_submit or function(job_desc)
    M.submit(job_desc)
    return slurm.SUCCESS
end

slurm_job_modify = slurm_job_modify or function(job_desc, job_rec)
    M.modify(job_desc, job_rec)
    return slurm.SUCCESS
end

return M
