-- Appends events to a target's stream and bounds it, so that no user's events displace those of others. A part of the
-- scripts that write events.
--
-- A stream with more than `kept` + EVENTS_LIVE + EVENTS_SLACK entries is cut to `kept` by equal shares: of each user the
-- newest entries stay, as many as there is room for if no user has more than the others need. Those of the server count as
-- one user's. The newest EVENTS_LIVE stay in any case, for readers that follow. Of too many users the oldest entries go.
-- The stream is written anew under the same ids: entries that XDEL removes keep their memory for as long as one entry of
-- their node is there.
--
-- The oldest entry that stays of a user then has the fields `left_out`, how many of hers before it are gone, and
-- `left_out_to`, the id of the newest of these. For users of whom nothing stays, the first entry of the stream has them.
local EVENTS_LIVE = 250
local EVENTS_SLACK = 250
-- By age, whoever it is about: for users of Redis who may not read streams, which is needed to cut them.
local EVENTS_AT_MOST = 3
local FIELDS_AT_MOST = 64

local function later(one, other)
  local ms, number = string.match(one, '^(%d+)-(%d+)$')
  local other_ms, other_number = string.match(other, '^(%d+)-(%d+)$')
  if not ms then return other end
  if not other_ms then return one end
  ms, other_ms = tonumber(ms), tonumber(other_ms)
  if ms ~= other_ms then return ms > other_ms and one or other end
  return tonumber(number) > tonumber(other_number) and one or other
end

-- Returns the user of an entry, nil where no worker wrote it, and whether it has a mark.
local function user_of(fields)
  if #fields > FIELDS_AT_MOST then return nil end
  local user, marked = '', false
  for i = 1, #fields, 2 do
    local name = fields[i]
    if name == 'username' then
      user = fields[i + 1]
    elseif name == 'left_out' or name == 'left_out_to' then
      marked = true
    end
  end
  return user, marked
end

-- Returns the fields of an entry without its mark, and the mark {count, to}, nil where it counts nothing.
local function split_mark(id, fields)
  local rest, count, to = {}, 0, id
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    if name == 'left_out' then
      count = #value < 16 and string.match(value, '^%d+$') and tonumber(value) or 0
    elseif name == 'left_out_to' then
      to = value
    else
      rest[#rest + 1] = name
      rest[#rest + 1] = value
    end
  end
  return rest, count > 0 and {count, to} or nil
end

-- Returns how many entries each user may keep.
local function equal_share(counts, kept)
  local sizes = {}
  for _, count in pairs(counts) do sizes[#sizes + 1] = count end
  table.sort(sizes)
  local room = kept
  for i, size in ipairs(sizes) do
    local share = math.floor(room / (#sizes - i + 1))
    if size > share then return math.max(share, 1) end
    room = room - size
  end
  return kept
end

local function merge(mark, more)
  if not mark then return {more[1], more[2]} end
  return {mark[1] + more[1], later(mark[2], more[2])}
end

local function cut_events(key, kept)
  local entries = redis.pcall('XREVRANGE', key, '+', '-', 'COUNT', kept * (EVENTS_AT_MOST + 1))
  if entries.err then return end
  local counts, users, marks = {}, {}, {}
  for i, entry in ipairs(entries) do
    local user, marked = user_of(entry[2])
    if marked then entry[2], marks[i] = split_mark(entry[1], entry[2]) end
    if user and #entry[2] > 0 then
      users[i] = user
      counts[user] = (counts[user] or 0) + 1
    end
  end
  local share, stay, of_user, gone = equal_share(counts, kept), {}, {}, {}
  for i, entry in ipairs(entries) do
    local user = users[i]
    local in_share = (of_user[user or ''] or 0) < share and #stay < kept + EVENTS_LIVE
    if user and (in_share or i <= EVENTS_LIVE) then
      of_user[user] = (of_user[user] or 0) + 1
      stay[#stay + 1] = i
    elseif user then
      gone[user] = merge(gone[user], {1, entry[1]})
      if marks[i] then gone[user] = merge(gone[user], marks[i]) end
    end
  end
  local nobodys
  for user, mark in pairs(gone) do
    if not of_user[user] then nobodys = merge(nobodys, mark) end
  end
  redis.call('DEL', key)
  for place = #stay, 1, -1 do
    local i = stay[place]
    local fields, user, mark = entries[i][2], users[i], marks[i]
    if gone[user] then mark, gone[user] = merge(mark, gone[user]), nil end
    if nobodys then mark, nobodys = merge(mark, nobodys), nil end
    if mark then
      for _, part in ipairs({'left_out', string.format('%.0f', mark[1]), 'left_out_to', mark[2]}) do
        fields[#fields + 1] = part
      end
    end
    redis.call('XADD', key, entries[i][1], unpack(fields))
  end
end

-- `entries` is a list of events, each a list of names and values.
local function add_events(key, entries, kept, ttl_ms)
  if #entries == 0 then return end
  kept = tonumber(kept)
  for _, entry in ipairs(entries) do
    redis.call('XADD', key, 'MAXLEN', '~', kept * EVENTS_AT_MOST, '*', unpack(entry))
  end
  local length = redis.pcall('XLEN', key)
  if type(length) == 'number' and length > kept + EVENTS_LIVE + EVENTS_SLACK then cut_events(key, kept) end
  redis.call('PEXPIRE', key, ttl_ms)
end
